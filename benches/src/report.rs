//! Tables of the measurements.

use std::fmt::Write as _;
use std::path::Path;

use anyhow::{Context, Result, bail};

use crate::greedy::GreedyNeighbour;
use crate::load::Round;
use crate::numbers::{megabytes, micros, thousands};
use crate::results::{Measured, Results, TargetOutcome, TargetResult};
use crate::{goals, plots};

/// The position of a run's tables in the folder of the documents.
struct RunPosition {
    document: &'static str,
    /// The text between these marks is replaced.
    begin: &'static str,
    end: &'static str,
    /// The folder of its charts.
    plots: &'static str,
}

const USUAL: RunPosition = RunPosition {
    document: "peers.md",
    begin: "<!-- measured: make bench -->",
    end: "<!-- end of the comparison -->",
    plots: "plots",
};
const LONG: RunPosition = RunPosition {
    document: "long.md",
    begin: "<!-- measured: make bench LONG=1 -->",
    end: "<!-- end of the long scenarios -->",
    plots: "plots-long",
};

/// A machine whose cores are used by others up to this share counts as idle.
const QUIET_CORES: f64 = 0.15;

/// Writes tables into a document of `folder`, and charts into a folder beside it. They replace those of the previous
/// run; the long scenarios have their own document.
///
/// # Errors
/// If the document cannot be read or written, or has no marks for them.
pub fn write(results: &Results, folder: &Path) -> Result<()> {
    let RunPosition { document, begin: begins, end: ends, plots: drawings } = position(results);
    let document = folder.join(document);
    let text =
        std::fs::read_to_string(&document).with_context(|| format!("cannot read {}", document.display()))?;
    let (Some(begin), Some(end)) = (text.find(begins), text.find(ends)) else {
        bail!("{} has no marks {begins:?} and {ends:?}", document.display())
    };
    let charts = folder.join(drawings);
    if charts.exists() {
        std::fs::remove_dir_all(&charts)?;
    }
    std::fs::create_dir_all(&charts)?;
    let mut tables = tables(results)?;
    writeln!(tables)?;
    for family in families(results) {
        let name = plots::file_name(&family[0].family);
        if plots::draw(&charts.join(&name), &family)? {
            writeln!(tables, "![{}]({drawings}/{name})", family[0].family)?;
        }
    }
    let whole = format!("{}{begins}\n{tables}{}", &text[..begin], &text[end..]);
    Ok(std::fs::write(document, whole)?)
}

/// Returns the name of the document that contains the tables of such a run.
#[must_use]
pub const fn document_name(results: &Results) -> &'static str {
    position(results).document
}

const fn position(results: &Results) -> RunPosition {
    if results.long { LONG } else { USUAL }
}

/// Formats all tables.
///
/// # Errors
/// If the text cannot be written, which does not happen.
pub fn tables(results: &Results) -> Result<String> {
    let mut text = String::new();
    about(&mut text, results)?;
    judged(&mut text, results)?;
    for family in families(results) {
        rates(&mut text, &family)?;
        costs(&mut text, &family)?;
    }
    idle_subjects(&mut text, results)?;
    greedy(&mut text, results)?;
    Ok(text)
}

/// Formats a line for a terminal.
#[must_use]
pub fn brief(line: &TargetResult, bytes: bool) -> String {
    match &line.trouble {
        Some(trouble) => format!("{:<22} {trouble}", line.target),
        None => format!("{:<22} {}", line.target, cell(line, bytes)),
    }
}

/// Groups scenarios that differ in one parameter only.
fn families(results: &Results) -> Vec<Vec<&Measured>> {
    let mut families: Vec<Vec<&Measured>> = Vec::new();
    for scenario in &results.scenarios {
        match families.iter_mut().find(|family| family[0].family == scenario.family) {
            Some(family) => family.push(scenario),
            None => families.push(vec![scenario]),
        }
    }
    families
}

fn about(text: &mut String, results: &Results) -> Result<()> {
    let machine = &results.machine;
    let others = results.others_cores().unwrap_or_default();
    let busy = if machine.load_before.max(others) > QUIET_CORES * machine.cores as f64 {
        "\n**The machine was busy with other work: a quiet machine gives better figures, so compare with care.**"
    } else {
        ""
    };
    writeln!(
        text,
        "`dormouse-bench run {}`, {}, commit {}, {} minutes.\n\
         {} × {}, {} GiB, Linux {}, {}.\n\
         Load at the start: {:.1}.\n\
         Other processes used {others:.2} cores.{busy}",
        results.arguments,
        machine.date,
        machine.commit,
        results.seconds.div_ceil(60),
        machine.cores,
        machine.processor,
        machine.memory_gib,
        machine.kernel,
        machine.rustc,
        machine.load_before,
    )?;
    writeln!(text, "\n| target | an acknowledged write is |\n|---|---|")?;
    for (target, outcome) in &results.targets {
        match outcome {
            TargetOutcome::Promises(promise) => writeln!(text, "| `{target}` | {promise} |")?,
            TargetOutcome::LeftOut(reason) => {
                writeln!(text, "| `{target}` | *not measured: {}* |", in_a_cell(reason))?
            }
        }
    }
    Ok(())
}

fn judged(text: &mut String, results: &Results) -> Result<()> {
    let (known, unknown): (Vec<_>, Vec<_>) =
        goals::judge(results).into_iter().partition(|judged| judged.measured.is_some());
    let met = known.iter().filter(|judged| judged.met).count();
    writeln!(
        text,
        "\n**Goals: {met} of {} met.** Median of the ratios within each round (lowest – highest):\n\n\
         | quantity | measured | goal | |\n|---|---:|---:|---|",
        known.len()
    )?;
    // Goals of the other kind of run are not missing in this one.
    let missing = unknown.iter().filter(|judged| judged.long == results.long);
    for judged in known.iter().chain(missing) {
        let verdict = match (&judged.measured, judged.met) {
            (None, _) => "not measured",
            (_, true) => "met",
            (_, false) => "**missed**",
        };
        let measured = judged.measured.as_deref().unwrap_or("–");
        writeln!(text, "| {} | {measured} | {} | {verdict} |", judged.what, judged.bound_text)?;
    }
    Ok(())
}

fn rates(text: &mut String, family: &[&Measured]) -> Result<()> {
    let unit = if family[0].bytes {
        "MB per second"
    } else {
        "per second (median / 99th percentile of the duration)"
    };
    writeln!(text, "\n**{}**, {unit}:\n", family[0].family)?;
    table(text, family, |line, scenario| cell(line, scenario.bytes))
}

fn costs(text: &mut String, family: &[&Measured]) -> Result<()> {
    let each = if family[0].bytes { "gigabyte" } else { "operation" };
    writeln!(
        text,
        "\n<details><summary>{}: processor time of client + broker + servers per {each}; memory; disk</summary>\n",
        family[0].family
    )?;
    table(text, family, |line, scenario| {
        let figure = |figure: fn(&Round) -> f64| line.median(figure).unwrap_or_default();
        let times = [
            figure(|round| round.client_us),
            figure(|round| round.broker_us),
            figure(|round| round.server_us),
        ];
        let time = if scenario.bytes {
            // Microseconds per byte are thousands of seconds per gigabyte.
            times.map(|each| format!("{:.2} s", each * 1e3)).join(" + ")
        } else {
            times.map(micros).join(" + ")
        };
        let memory = megabytes(figure(|round| round.resident_bytes as f64));
        format!("{time}; {memory}; {}", megabytes(line.disk_bytes as f64))
    })?;
    writeln!(text, "\n</details>")?;
    Ok(())
}

/// Writes a row for each target with this capability, and a column for each scenario.
fn table(
    text: &mut String,
    family: &[&Measured],
    cell: impl Fn(&TargetResult, &Measured) -> String,
) -> Result<()> {
    let columns: Vec<&str> = family.iter().map(|scenario| scenario.column.as_str()).collect();
    writeln!(text, "| | {} |", columns.join(" | "))?;
    writeln!(text, "|---|{}", "---:|".repeat(columns.len()))?;
    for line in &family[0].lines {
        let cells: Vec<String> = family
            .iter()
            .map(|scenario| match scenario.line(&line.target) {
                Some(TargetResult { trouble: Some(trouble), .. }) => format!("*{}*", in_a_cell(trouble)),
                Some(line) if !line.rounds.is_empty() => cell(line, scenario),
                _ => "–".to_owned(),
            })
            .collect();
        writeln!(text, "| `{}` | {} |", line.target, cells.join(" | "))?;
    }
    Ok(())
}

fn cell(line: &TargetResult, bytes: bool) -> String {
    let figure = |figure: fn(&Round) -> f64| line.median(figure).unwrap_or_default();
    let rate = figure(|round| round.per_second);
    if bytes {
        return thousands(rate / 1e6);
    }
    format!(
        "{} ({} / {})",
        thousands(rate),
        micros(figure(|round| round.p50_us)),
        micros(figure(|round| round.p99_us))
    )
}

fn idle_subjects(text: &mut String, results: &Results) -> Result<()> {
    if results.idle_subjects.is_empty() {
        return Ok(());
    }
    writeln!(
        text,
        "\n**Dormant subjects**, with a fleet started on them:\n\n\
         | subjects | first locate after | first reply after | first reply, only the server restarted | server | coordinator | processor time without requests |\n\
         |---:|---:|---:|---:|---:|---:|---:|"
    )?;
    for idle_subjects in &results.idle_subjects {
        writeln!(
            text,
            "| {} | {:.2} s | {:.2} s | {:.2} s | {} | {} | {:.2} % of a core |",
            idle_subjects.subjects,
            idle_subjects.first_locate_s,
            idle_subjects.both_first_answer_s,
            idle_subjects.first_answer_s,
            megabytes(idle_subjects.server_bytes as f64),
            megabytes(idle_subjects.coordinator_bytes as f64),
            idle_subjects.idle_cores * 100.0
        )?;
    }
    Ok(())
}

fn greedy(text: &mut String, results: &Results) -> Result<()> {
    if results.greedy.is_empty() {
        return Ok(());
    }
    writeln!(
        text,
        "\n**Greedy neighbours**, a polite tenant before and during the attack of another tenant:\n\n\
         | aggressor | p50 before → during | p99 before → during | ratio of p99 | failed calls | lapses | memory of the server, before → peak | replies to the aggressor |\n\
         |---|---:|---:|---:|---:|---:|---:|---|"
    )?;
    for GreedyNeighbour { aggressor, figures } in &results.greedy {
        match figures {
            Ok(figures) => writeln!(
                text,
                "| {aggressor} | {} → {} | {} → {} | {:.1} | {} of {} | {} | {} → {} | {} |",
                micros(figures.quiet.p50_us),
                micros(figures.during.p50_us),
                micros(figures.quiet.p99_us),
                micros(figures.during.p99_us),
                figures.slowdown(),
                figures.failed,
                figures.calls,
                figures.lapses,
                megabytes(figures.bytes_before as f64),
                megabytes(figures.peak_bytes as f64),
                figures.attack,
            )?,
            Err(trouble) => {
                writeln!(text, "| {aggressor} | *{}* | | | | | | |", in_a_cell(trouble))?;
            }
        }
    }
    Ok(())
}

/// Returns the first line of a text, without characters that would end a cell.
fn in_a_cell(text: &str) -> String {
    text.lines().next().unwrap_or_default().replace('|', "/")
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;
    use std::path::Path;

    use super::{GreedyNeighbour, LONG, RunPosition, USUAL, write};
    use crate::greedy::{GreedyFigures, Percentiles};
    use crate::load::Round;
    use crate::machine::Machine;
    use crate::results::{Measured, Results, TargetOutcome, TargetResult};

    fn line(target: &str, per_second: f64) -> TargetResult {
        let round = Round {
            done: 1,
            per_second,
            p50_us: 42.0,
            p99_us: 99.0,
            client_us: 1.0,
            broker_us: 2.0,
            server_us: 3.0,
            afterwards_ms: 4,
            resident_bytes: 5_000_000,
            others_cores: 0.0,
        };
        TargetResult {
            target: target.to_owned(),
            rounds: BTreeMap::from([(0, round)]),
            trouble: None,
            disk_bytes: 6_000_000,
        }
    }

    fn neighbour() -> GreedyNeighbour {
        let figures = GreedyFigures {
            quiet: Percentiles { p50_us: 100.0, p99_us: 200.0 },
            during: Percentiles { p50_us: 300.0, p99_us: 1_000.0 },
            calls: 1_000,
            failed: 1,
            lapses: 2,
            bytes_before: 30_000_000,
            peak_bytes: 40_000_000,
            attack: "5 ok, 6 overloaded".to_owned(),
        };
        GreedyNeighbour { aggressor: "small gets".to_owned(), figures: Ok(figures) }
    }

    fn results(long: bool) -> Results {
        let targets = ["echo", "dormouse-disk"];
        Results {
            machine: Machine {
                date: "2026-01-02".to_owned(),
                commit: "0123456789".to_owned(),
                cores: 2,
                processor: "Test".to_owned(),
                memory_gib: 8,
                kernel: "6".to_owned(),
                rustc: "rustc 1".to_owned(),
                load_before: 2.0,
                open_files: 1_024,
            },
            arguments: "--quick".to_owned(),
            terms: "--quick".to_owned(),
            long,
            whole: true,
            seconds: 61,
            targets: targets
                .map(|target| (target.to_owned(), TargetOutcome::Promises("stored".to_owned())))
                .into(),
            scenarios: vec![Measured {
                name: "get 128 B, 1 in flight".to_owned(),
                family: "get 128 B".to_owned(),
                column: "1 in flight".to_owned(),
                bytes: false,
                lines: targets.map(|target| line(target, 1_000.0)).into(),
            }],
            idle_subjects: Vec::new(),
            greedy: vec![neighbour()],
        }
    }

    /// A report replaces the text between the marks of its kind of run and its charts, and nothing else.
    #[test]
    fn report_replaces_its_tables_and_charts_only() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = |name: &str| folder.path().join(name);
        for RunPosition { document, begin, end, plots } in [USUAL, LONG] {
            std::fs::write(path(document), format!("head\n{begin}\nold\n{end}\ntail\n")).expect("a document");
            std::fs::create_dir(path(plots)).expect("a folder of charts");
            std::fs::write(path(plots).join("old.svg"), "").expect("a chart");
        }
        let long_before = std::fs::read(path(LONG.document)).expect("a document");
        write(&results(false), folder.path()).expect("the usual report");
        let text = std::fs::read_to_string(path(USUAL.document)).expect("a document");
        assert!(
            text.starts_with(&format!("head\n{}\n`dormouse-bench run --quick`, ", USUAL.begin)),
            "{text}"
        );
        assert!(
            text.ends_with(&format!("![get 128 B](plots/get-128-B.svg)\n{}\ntail\n", USUAL.end)),
            "{text}"
        );
        assert!(text.contains("| `dormouse-disk` | 1,000 (42 µs / 99 µs) |"), "{text}");
        assert!(path("plots/get-128-B.svg").exists() && !path("plots/old.svg").exists());
        assert_eq!(std::fs::read(path(LONG.document)).expect("a document"), long_before);
        assert!(path("plots-long/old.svg").exists());
        write(&results(true), folder.path()).expect("the long report");
        assert!(path("plots-long/get-128-B.svg").exists() && !path("plots-long/old.svg").exists());
        assert_eq!(std::fs::read_to_string(path(USUAL.document)).expect("a document"), text);
    }

    /// Each sentence about the run has its own line, and all lines of prose are short.
    #[test]
    fn report_has_one_sentence_per_line() {
        let text = super::tables(&results(false)).expect("tables");
        let about: Vec<&str> = text.lines().take_while(|line| !line.is_empty()).collect();
        assert_eq!(
            about[..4],
            [
                "`dormouse-bench run --quick`, 2026-01-02, commit 0123456789, 2 minutes.",
                "2 × Test, 8 GiB, Linux 6, rustc 1.",
                "Load at the start: 2.0.",
                "Other processes used 0.00 cores.",
            ]
        );
        assert!(
            about[4].starts_with("**The machine was busy with other work") && about.len() == 5,
            "{about:?}"
        );
    }

    /// The table of greedy neighbours has the figures of each trial, or the reason for their absence.
    #[test]
    fn report_shows_greedy_neighbours_or_their_failure() {
        let mut results = results(false);
        let text = super::tables(&results).expect("tables");
        let row = "| small gets | 100 µs → 300 µs | 200 µs → 1.0 ms | 5.0 | 1 of 1000 | 2 | 30 MB → 40 MB | 5 ok, 6 overloaded |";
        assert!(text.contains(row), "{text}");
        results.greedy[0].figures = Err("no nats-server | found".to_owned());
        let text = super::tables(&results).expect("tables");
        assert!(text.contains("| small gets | *no nats-server / found* |"), "{text}");
    }

    /// The documents of this repository have the marks, and each chart that they show exists.
    #[test]
    fn documents_have_their_marks_and_charts() {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/benchmarks");
        for RunPosition { document, begin, end, .. } in [USUAL, LONG] {
            let text = std::fs::read_to_string(folder.join(document)).expect("a document");
            assert_eq!((text.matches(begin).count(), text.matches(end).count()), (1, 1), "{document}");
            for chart in text.lines().filter_map(|line| line.strip_prefix("![")?.strip_suffix(')')) {
                let (_, file) = chart.split_once("](").expect("a link");
                assert!(folder.join(file).exists(), "{document}: {file}");
            }
        }
    }
}
