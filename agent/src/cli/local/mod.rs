//! What a dev box intercepts, from the command line alone: rows of ports, and whose connections.
//!
//! After it: `run` serves the configuration that these make, `exec` adds the rows to its own.

mod row;
mod text;

use std::path::PathBuf;

use clap::error::ErrorKind;

pub use row::{InboundRow, LocalRow};
pub use text::{additions, configuration};

/// Rows of `intercept.processes` at most; the kernel's hooks ask every one.
const PROCESS_ROWS: usize = waylay_common::processes::PROCESS_ROWS;

/// Bytes of a thread's name that the kernel keeps.
const COMM_MAX: usize = 15;

/// What to intercept, without a configuration file.
#[derive(Clone, Debug, Default, clap::Args)]
#[command(next_help_heading = "Instead of a configuration file")]
pub struct Intercepted {
    /// What local programs send to a port (or to IP:PORT) goes to an address; can be repeated
    #[arg(long, value_name = "[IP:]PORT => IP:PORT")]
    pub local: Vec<LocalRow>,

    /// What arrives at a local port goes to an address, whoever serves the port; can be repeated
    #[arg(long, value_name = "PORT => IP:PORT")]
    pub inbound: Vec<InboundRow>,

    #[command(flatten)]
    pub whose: Whose,
}

/// Whose connections are taken. Of one kind any, of different kinds each: as `pgrep -u alice curl` and `journalctl` choose.
#[derive(Clone, Debug, Default, clap::Args)]
pub struct Whose {
    /// Only connections of this process (not of its children); can be repeated
    #[arg(long, value_name = "PID")]
    pub pid: Vec<u32>,

    /// Only of processes in this cgroup or below it, a path below the cgroup2 mount; can be repeated
    #[arg(long, value_name = "PATH")]
    pub cgroup: Vec<PathBuf>,

    /// Only of this systemd unit, of the system or of a user; can be repeated
    #[arg(long, value_name = "UNIT")]
    pub unit: Vec<String>,

    /// Only of this user, by name or number; can be repeated
    #[arg(long, value_name = "USER")]
    pub user: Vec<String>,

    /// Only of processes (more exactly: threads) with this name; can be repeated
    #[arg(long, value_name = "NAME")]
    pub comm: Vec<String>,
}

/// One criterion as it stands in a row: its field and its value, as YAML.
type Criterion = (&'static str, String);

impl Whose {
    /// The rows of `intercept.processes`: every combination of one of each kind. A unit is a cgroup, so both are one kind.
    fn rows(&self) -> Vec<Vec<Criterion>> {
        let quoted = |text: &str| serde_json::Value::from(text).to_string();
        let units = self.unit.iter().map(|unit| ("unit", quoted(unit)));
        let cgroups = self.cgroup.iter().map(|path| ("cgroup", quoted(&path.to_string_lossy())));
        let kinds: [Vec<Criterion>; 4] = [
            self.user.iter().map(|user| ("user", quoted(user))).collect(),
            self.comm.iter().map(|comm| ("comm", quoted(kept(comm)))).collect(),
            self.pid.iter().map(|pid| ("pid", pid.to_string())).collect(),
            units.chain(cgroups).collect(),
        ];
        let mut rows = vec![Vec::new()];
        for kind in kinds.iter().filter(|kind| !kind.is_empty()) {
            rows = rows
                .iter()
                .flat_map(|row: &Vec<Criterion>| {
                    kind.iter().map(move |criterion| row.iter().chain([criterion]).cloned().collect())
                })
                .collect();
        }
        rows.retain(|row| !row.is_empty());
        rows
    }
}

/// A name as long as the kernel keeps it, so that the name of a program's file can be given as it is.
fn kept(comm: &str) -> &str {
    let end = (0..=comm.len().min(COMM_MAX)).rev().find(|end| comm.is_char_boundary(*end));
    &comm[..end.unwrap_or(0)]
}

impl Intercepted {
    /// What clap cannot see by itself. `with_file`: there is a configuration file as well.
    ///
    /// # Errors
    /// Nothing is given or too much, rows that contradict each other, or too many combinations.
    pub fn check(&self, with_file: bool) -> Result<(), clap::Error> {
        let error = |message: String| Err(clap::Error::raw(ErrorKind::ValueValidation, message + "\n"));
        let rows = self.whose.rows().len();
        let given = rows + self.local.len() + self.inbound.len() > 0;
        if with_file && given {
            return error(
                "-c says what to intercept: write the rows into the file (--print-config shows how), or leave -c away"
                    .into(),
            );
        }
        if !with_file && !given {
            return error(
                "give a configuration file (-c FILE), or say what to intercept: --local, --inbound, --pid, --cgroup, \
                 --unit, --user, --comm"
                    .into(),
            );
        }
        if rows > PROCESS_ROWS {
            return error(format!(
                "--pid, --cgroup, --unit, --user and --comm make {rows} combinations, at most {PROCESS_ROWS} are possible"
            ));
        }
        if let Some(row) = self.inbound.iter().find(|row| text::PORTS.contains(&row.port())) {
            return error(format!("--inbound {}: waylay itself listens at this port, and never takes it", row.port()));
        }
        let local = self.local.iter().map(|row| format!("--local {}", row.from()));
        let inbound = self.inbound.iter().map(|row| format!("--inbound {}", row.port()));
        let mut all: Vec<_> = local.chain(inbound).collect();
        all.sort();
        match all.windows(2).find(|pair| pair[0] == pair[1]) {
            Some(pair) => error(format!("{} is given twice: connections can go to one address", pair[0])),
            None => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rows(whose: &Whose) -> Vec<String> {
        let text = |row: &Vec<Criterion>| row.iter().map(|(field, value)| format!("{field}={value} ")).collect();
        whose.rows().iter().map(text).collect()
    }

    #[test]
    fn of_one_kind_any_and_of_different_kinds_each() {
        let whose = Whose {
            user: vec!["alice".into(), "1001".into()],
            comm: vec!["curl".into()],
            unit: vec!["nginx".into()],
            cgroup: vec!["/app".into()],
            ..Whose::default()
        };
        let expected: Vec<_> = ["\"alice\"", "\"1001\""]
            .iter()
            .flat_map(|user| {
                [r#"unit="nginx""#, r#"cgroup="/app""#].map(|place| format!("user={user} comm=\"curl\" {place} "))
            })
            .collect();
        assert_eq!(rows(&whose), expected);
        assert_eq!(rows(&Whose::default()), [""; 0]);
        assert_eq!(rows(&Whose { pid: vec![1, 2], ..Whose::default() }), ["pid=1 ", "pid=2 "]);
    }

    #[test]
    fn what_cannot_be_is_refused() {
        let whose = Whose { pid: (1..=17).collect(), ..Whose::default() };
        let error = Intercepted { whose, ..Intercepted::default() }.check(false).expect_err("too many").to_string();
        assert!(error.contains("17 combinations"), "{error}");
        for (with_file, expected) in [(false, "give a configuration file"), (true, "")] {
            let error = Intercepted::default().check(with_file).err().map(|error| error.to_string());
            assert!(error.unwrap_or_default().contains(expected), "{with_file}");
        }
        let inbound = vec!["15006 => 127.0.0.1:1".parse().expect("a row")];
        let error = Intercepted { inbound, ..Intercepted::default() }.check(false).expect_err("its own").to_string();
        assert!(error.contains("--inbound 15006: waylay itself listens"), "{error}");
        let local = ["80 => 127.0.0.1:1", "80 => 127.0.0.1:2"].map(|row| row.parse().expect(row)).into();
        let error = Intercepted { local, ..Intercepted::default() }.check(false).expect_err("twice").to_string();
        assert!(error.contains("--local 80 is given twice"), "{error}");
    }
}
