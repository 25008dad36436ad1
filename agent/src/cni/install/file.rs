//! Replaces a file as a whole: whoever reads it sees the old one or the new one.

use std::ffi::OsString;
use std::fs::{self, File, OpenOptions, Permissions};
use std::io::{self, Write};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt, PermissionsExt, fchown};
use std::path::{Path, PathBuf};

/// Who may do what with the new file.
#[derive(Clone, Copy, Debug)]
pub enum Mode<'a> {
    /// All may run it.
    Program,
    /// As with the file that it replaces.
    AsBefore,
    /// As with this one.
    Like(&'a Path),
}

/// Writes `content` beside `path` and renames it onto it; where `path` is a symbolic link, onto what it leads to.
///
/// In the same folder not only for the rename: containerd takes no notice of a new name in its folder of networks, but of
/// one that goes.
///
/// # Errors
/// Nothing has changed.
pub fn replace(path: &Path, content: &[u8], mode: Mode<'_>) -> io::Result<()> {
    let path = fs::canonicalize(path).unwrap_or_else(|_| path.to_owned());
    let beside = beside(&path)?;
    let done = write(&beside, &path, content, mode).and_then(|()| fs::rename(&beside, &path));
    if done.is_err() {
        let _ = fs::remove_file(&beside);
    }
    done
}

fn write(beside: &Path, path: &Path, content: &[u8], mode: Mode<'_>) -> io::Result<()> {
    // What a killed process of the same pid left.
    let _ = fs::remove_file(beside);
    let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(beside)?;
    file.write_all(content)?;
    match mode {
        Mode::Program => file.set_permissions(Permissions::from_mode(0o755))?,
        Mode::AsBefore => like(&file, path)?,
        Mode::Like(model) => like(&file, model)?,
    }
    // Else a crash of the node might leave the new name with nothing in it.
    file.sync_all()
}

fn like(file: &File, model: &Path) -> io::Result<()> {
    let model = fs::metadata(model)?;
    fchown(file, Some(model.uid()), Some(model.gid()))?;
    file.set_permissions(Permissions::from_mode(model.mode() & 0o7777))
}

/// In the same folder, hence the same file system; with a name that no runtime reads.
fn beside(path: &Path) -> io::Result<PathBuf> {
    let name = path.file_name().ok_or_else(|| io::Error::new(io::ErrorKind::InvalidInput, "no file name"))?;
    let mut hidden = OsString::from(".");
    hidden.push(name);
    hidden.push(format!(".{}.new", std::process::id()));
    Ok(path.with_file_name(hidden))
}
