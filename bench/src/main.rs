//! `bench-stats`: simulates the cells and writes what they came to, as numbers and as a page of the guide.

use std::path::{Path, PathBuf};
use std::time::Instant;

use anyhow::{Context, Result, ensure};
use clap::Parser;
use davylamp_bench::cells::{self, Cell};
use davylamp_bench::results::Results;
use davylamp_bench::{page, random, run};

/// Who rolls back what, and when: simulations of our rules and of those that people use.
#[derive(Debug, Parser)]
struct Arguments {
    /// Only cells whose name contains this; the results of the others stay as they are.
    #[arg(long, value_name = "PATTERN")]
    cells: Option<String>,
    /// So many runs of each cell, for a quick look; written to target/bench-stats, not to the results.
    #[arg(long, value_name = "N")]
    runs: Option<u32>,
    /// Draw the page and the pictures from the results that are there; simulate nothing.
    #[arg(long)]
    page: bool,
    /// List the cells and how often each is run.
    #[arg(long)]
    list: bool,
    /// Threads; the results are the same for any number.
    #[arg(long, value_name = "N")]
    threads: Option<u32>,
}

fn main() -> Result<()> {
    let arguments = Arguments::parse();
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent().context("the repository has no root")?;
    let place = match arguments.runs {
        Some(_) => Place::quick(root),
        None => Place::committed(root),
    };
    let all = cells::all();
    let chosen: Vec<&Cell> = all
        .iter()
        .filter(|cell| arguments.cells.as_ref().is_none_or(|pattern| cell.name.contains(pattern.as_str())))
        .collect();
    ensure!(!chosen.is_empty(), "no cell has a name like this; --list shows them");
    if arguments.list {
        list(&chosen);
        return Ok(());
    }

    let mut results = place.read()?;
    if !arguments.page {
        let threads = match arguments.threads {
            Some(threads) => threads,
            None => u32::try_from(std::thread::available_parallelism()?.get())?,
        };
        let runs = |cell: &Cell| arguments.runs.unwrap_or(cell.runs);
        let cost = |cell: &Cell| cell.cost() * f64::from(runs(cell));
        let mut progress = run::Progress::new(chosen.iter().map(|cell| cost(cell)).sum());
        for cell in chosen {
            let begun = Instant::now();
            let result = run::cell(cell, runs(cell), threads)?;
            progress.add(&result, cost(cell), begun.elapsed().as_secs_f64());
            results.cells.retain(|other| other.name != result.name);
            results.cells.push(result);
        }
    }
    results.seed = random::SEED;
    let position = |name: &str| all.iter().position(|cell| cell.name == name);
    results.cells.retain(|cell| position(&cell.name).is_some());
    results.cells.sort_by_key(|cell| position(&cell.name));
    place.write(&results)
}

#[expect(clippy::print_stdout, reason = "this is what the user asked for")]
fn list(cells: &[&Cell]) {
    for cell in cells {
        let bound = cell.bound().map_or(String::new(), |bound| format!("bound {bound:.1} min"));
        println!("{:6} × {:50} {:50} {bound}", cell.runs, cell.name, cell.title);
    }
}

/// Where results are read from and written to.
struct Place {
    results: PathBuf,
    guide: PathBuf,
    quick: bool,
}

impl Place {
    fn committed(root: &Path) -> Self {
        Self {
            results: root.join("bench/results/statistics.json"),
            guide: root.join("docs/src"),
            quick: false,
        }
    }

    fn quick(root: &Path) -> Self {
        let folder = root.join("target/bench-stats");
        Self { results: folder.join("statistics.json"), guide: folder, quick: true }
    }

    fn read(&self) -> Result<Results> {
        if !self.results.exists() {
            return Ok(Results::default());
        }
        let text = std::fs::read_to_string(&self.results)?;
        serde_json::from_str(&text).with_context(|| format!("{} is damaged", self.results.display()))
    }

    fn write(&self, results: &Results) -> Result<()> {
        let mut files = page::files(results, self.quick)?;
        files.insert(self.results.clone(), serde_json::to_string_pretty(results)? + "\n");
        for (name, text) in files {
            let path = self.guide.join(name);
            std::fs::create_dir_all(path.parent().context("a file without a folder")?)?;
            std::fs::write(&path, text).with_context(|| format!("cannot write {}", path.display()))?;
        }
        Ok(())
    }
}
