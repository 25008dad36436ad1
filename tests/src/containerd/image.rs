//! The one image of the tests' pods, made by hand: busybox, and the host's `/usr` where containers mount it.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, ensure};

/// Its name in full: with anything less containerd would look for it in a registry.
pub const NAME: &str = "localhost/waylay-tests/busybox:1";

/// What of busybox the image has a link for.
const APPLETS: [&str; 12] =
    ["cat", "echo", "env", "httpd", "ip", "kill", "nc", "nslookup", "sh", "sleep", "wget", "true"];

/// Writes the image as an archive, in the form of `docker save`, below `folder`.
///
/// # Errors
/// busybox is not installed, or the disk is full.
pub fn archive(folder: &Path) -> Result<PathBuf> {
    let root = folder.join("rootfs");
    for name in ["bin", "etc", "proc", "sys", "dev", "tmp", "usr", "www"] {
        fs::create_dir_all(root.join(name))?;
    }
    fs::copy("/usr/bin/busybox", root.join("bin/busybox")).context("copying busybox: install busybox-static")?;
    for applet in APPLETS {
        symlink("busybox", root.join("bin").join(applet))?;
    }
    // Where a merged /usr has them: the host's programs run once /usr is mounted.
    for name in ["lib", "lib64"] {
        symlink(format!("usr/{name}"), root.join(name))?;
    }
    fs::write(root.join("etc/passwd"), "root:x:0:0:root:/:/bin/sh\n")?;
    let parts = folder.join("image");
    fs::create_dir_all(&parts)?;
    let layer = parts.join("layer.tar");
    tar(&root, &layer)?;
    let config = serde_json::json!({
        "architecture": if cfg!(target_arch = "aarch64") { "arm64" } else { "amd64" },
        "os": "linux",
        // The sandbox's own process does nothing.
        "config": { "Entrypoint": ["/bin/sleep", "1000000000"], "Env": ["PATH=/usr/sbin:/usr/bin:/sbin:/bin"] },
        "rootfs": { "type": "layers", "diff_ids": [format!("sha256:{}", sha256(&layer)?)] },
    });
    fs::write(parts.join("config.json"), config.to_string())?;
    let manifest = serde_json::json!([{ "Config": "config.json", "RepoTags": [NAME], "Layers": ["layer.tar"] }]);
    fs::write(parts.join("manifest.json"), manifest.to_string())?;
    let archive = folder.join("image.tar");
    tar(&parts, &archive)?;
    Ok(archive)
}

fn tar(of: &Path, to: &Path) -> Result<()> {
    let output = Command::new("tar").arg("-C").arg(of).arg("-cf").arg(to).arg(".").output()?;
    ensure!(output.status.success(), "tar: {}", String::from_utf8_lossy(&output.stderr));
    Ok(())
}

fn sha256(file: &Path) -> Result<String> {
    let output = Command::new("sha256sum").arg(file).output()?;
    let text = String::from_utf8(output.stdout)?;
    text.split_whitespace().next().map(str::to_owned).context("sha256sum printed nothing")
}
