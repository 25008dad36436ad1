//! Where a run is kept: `target/bench/<time>.json`, `latest.json`, `report.md` and the plots; and how it comes into
//! `docs/`.

use std::{
    fs,
    path::{Path, PathBuf},
};

use anyhow::{Context as _, Result};

use super::{plot, report, results::Results};
use crate::shell;

const LATEST: &str = "latest.json";

#[derive(Debug)]
pub struct Folder(PathBuf);

impl Folder {
    pub fn open() -> Result<Self> {
        let path = shell::target_dir().join("bench");
        fs::create_dir_all(&path).with_context(|| format!("cannot make {}", path.display()))?;
        Ok(Self(path))
    }

    pub fn path(&self) -> &Path {
        &self.0
    }

    /// The run before.
    pub fn latest(&self) -> Result<Results> {
        Results::load(&self.0.join(LATEST)).context("no run is stored: `cargo xtask bench` makes one")
    }

    pub fn write(&self, results: &Results) -> Result<()> {
        let name = results.machine.time.replace(':', "-");
        results.store(&self.0.join(format!("{name}.json")))?;
        results.store(&self.0.join(LATEST))?;
        let report = self.0.join("report.md");
        fs::write(&report, report::whole(results)).with_context(|| format!("cannot write {}", report.display()))?;
        write_plots(&self.0, results)
    }

    /// Makes `docs/benchmarks.md`, its plots and the README's table from a run.
    pub fn publish(&self, results: &Results) -> Result<()> {
        let docs = shell::root().join("docs");
        let plots = docs.join("benchmarks");
        fs::create_dir_all(&plots).with_context(|| format!("cannot make {}", plots.display()))?;
        write_plots(&plots, results)?;
        let images: Vec<_> = plot::all(results).into_iter().map(|(name, _)| name).collect();
        rewrite(&docs.join("benchmarks.md"), |page| report::published(page, results, &images))?;
        rewrite(&shell::root().join("README.md"), |page| report::in_short(page, results, &images))
    }
}

fn rewrite(page: &Path, change: impl FnOnce(&str) -> Result<String>) -> Result<()> {
    let text = fs::read_to_string(page).with_context(|| format!("cannot read {}", page.display()))?;
    let text = change(&text).with_context(|| format!("cannot write into {}", page.display()))?;
    fs::write(page, text).with_context(|| format!("cannot write {}", page.display()))?;
    eprintln!("written: {}", page.display());
    Ok(())
}

fn write_plots(folder: &Path, results: &Results) -> Result<()> {
    for (name, svg) in plot::all(results) {
        let file = folder.join(format!("{name}.svg"));
        fs::write(&file, svg).with_context(|| format!("cannot write {}", file.display()))?;
    }
    Ok(())
}
