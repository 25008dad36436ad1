//! Programs that the tests need besides Debian's: a Python environment that `cargo xtask setup` makes.

use std::path::PathBuf;

use crate::agent::binary;

/// A program of the Python environment in `target/test-venv`.
///
/// # Panics
/// It is not there.
pub fn venv(program: &str) -> PathBuf {
    let profile = binary().parent().map(PathBuf::from).expect("target/<profile>");
    let path = profile.parent().expect("target").join("test-venv/bin").join(program);
    assert!(path.exists(), "{} is missing: run `cargo xtask test`, which installs it", path.display());
    path
}

/// The Python of that environment, as text.
pub fn python() -> String {
    venv("python3").to_str().expect("a UTF-8 path").to_owned()
}
