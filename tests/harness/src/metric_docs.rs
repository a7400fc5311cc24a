//! The tables of `docs/metrics.md`.

/// The differences between `metrics`, which have a name, a type and labels separated by `, ` each, and the tables in
/// `sections` of `page`: one sentence for each.
///
/// # Panics
/// If a section has no table.
#[must_use]
pub fn metric_docs_differences(metrics: &[[String; 3]], page: &str, sections: &[&str]) -> Vec<String> {
    let documented: Vec<[String; 3]> = sections.iter().flat_map(|section| rows(page, section)).collect();
    let missing = metrics.iter().filter(|metric| !documented.contains(metric));
    let missing = missing.map(|metric| format!("not on the page: {metric:?}"));
    let stale = documented.iter().filter(|metric| !metrics.contains(metric));
    missing.chain(stale.map(|metric| format!("only on the page: {metric:?}"))).collect()
}

fn rows(page: &str, section: &str) -> Vec<[String; 3]> {
    let heading = format!("\n## {section}\n");
    let (_, rest) = page.split_once(&heading).unwrap_or_else(|| panic!("no section {section:?}"));
    let table = rest.split("\n## ").next().unwrap_or(rest);
    let rows = table.lines().filter(|line| line.starts_with("| `dormouse_"));
    let rows: Vec<[String; 3]> = rows
        .map(|row| {
            let mut cells = row.split('|').skip(1).map(|cell| cell.replace('`', "").trim().to_owned());
            [(); 3].map(|()| cells.next().unwrap_or_default())
        })
        .collect();
    assert!(!rows.is_empty(), "no metric in section {section:?}");
    rows
}
