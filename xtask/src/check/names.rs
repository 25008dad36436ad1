//! No file of the repository names a package registry's host or a path of the machine it was written on: those are the
//! reader's to choose, and they differ from place to place.

use std::{env, fs};

use anyhow::{Result, bail};

use crate::shell;

/// Written in two parts, or this file would name them itself.
const HOSTS: &[(&str, &str)] = &[
    ("crates", ".io"),
    ("static.rust-lang", ".org"),
    ("pypi", ".org"),
    ("pythonhosted", ".org"),
    ("npmjs", ".org"),
    ("npmjs", ".com"),
    ("deb.debian", ".org"),
    ("security.debian", ".org"),
    ("docker", ".io"),
    ("docker", ".com"),
    ("ghcr", ".io"),
    ("gcr", ".io"),
    ("pkg", ".dev"),
    ("quay", ".io"),
    ("registry.k8s", ".io"),
    ("proxy.golang", ".org"),
];

/// Homes of people and of root.
const PATHS: &[(&str, &str)] = &[("/ro", "ot/"), ("/ho", "me/")];

/// Cargo writes the registry of each crate into its lock file.
const EXEMPT: &[&str] = &["Cargo.lock", "tests/pingora/Cargo.lock"];

pub fn check() -> Result<()> {
    let needles = needles();
    let mut found = Vec::new();
    let files =
        shell::stdout(shell::command("git").args(["ls-files", "-z", "--cached", "--others", "--exclude-standard"]))?;
    for file in files.split('\0').filter(|file| !file.is_empty() && !EXEMPT.contains(file)) {
        // A file that is deleted but not yet committed, or that is no text, names nothing.
        let Ok(text) = fs::read_to_string(shell::root().join(file)) else {
            continue;
        };
        found.extend(hits(&text, &needles).map(|(line, name)| format!("{file}:{line}: {name}")));
    }
    if !found.is_empty() {
        bail!("these name a registry's host or a path of one machine:\n  {}", found.join("\n  "));
    }
    Ok(())
}

fn needles() -> Vec<String> {
    let fixed = HOSTS.iter().chain(PATHS).map(|(first, second)| format!("{first}{second}"));
    let home = env::var("HOME").ok().filter(|home| home.len() > 1).map(|home| home + "/");
    let root = shell::root().display().to_string();
    fixed.chain(home).chain([root]).collect()
}

/// Line numbers from 1, with the first name that the line holds.
fn hits<'a>(text: &'a str, needles: &'a [String]) -> impl Iterator<Item = (usize, &'a str)> {
    text.lines().enumerate().filter_map(|(index, line)| {
        let name = needles.iter().find(|needle| line.contains(needle.as_str()))?;
        Some((index + 1, name.as_str()))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_host_and_a_home_are_found_with_their_lines() {
        let host = format!("{}{}", HOSTS[0].0, HOSTS[0].1);
        let home = format!("{}{}someone/x", PATHS[1].0, PATHS[1].1);
        let text = format!("fine\nsee {host}\nfine\n{home}\n");
        let needles = needles();
        let lines: Vec<_> = hits(&text, &needles).map(|(line, _)| line).collect();
        assert_eq!(lines, [2, 4]);
    }
}
