//! The documents name existing tests, rules, crates and files: a table without a check soon becomes wrong.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

fn root() -> PathBuf {
    dormouse_harness::workspace_root()
}

fn document(name: &str) -> String {
    std::fs::read_to_string(root().join(name)).unwrap()
}

/// Adds the files with this extension in `folder` and below. Skips build output and hidden folders.
fn collect_files(folder: &Path, extension: &str, files: &mut Vec<PathBuf>) {
    for entry in std::fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        let name = path.file_name().unwrap().to_string_lossy();
        if path.is_dir() && name != "target" && !name.starts_with('.') {
            collect_files(&path, extension, files);
        } else if path.is_file() && path.extension().is_some_and(|found| found == extension) {
            files.push(path);
        }
    }
}

/// Returns the Markdown pages of the project. The pages of `crates` are left out: their links are those of rustdoc.
fn pages() -> Vec<PathBuf> {
    let mut pages = Vec::new();
    for folder in ["docs", "deploy", "tests", "benches"] {
        collect_files(&root().join(folder), "md", &mut pages);
    }
    let top = std::fs::read_dir(root()).unwrap().map(|entry| entry.unwrap().path());
    pages.extend(top.filter(|path| path.extension().is_some_and(|extension| extension == "md")));
    pages
}

/// Returns the tests of a source file. If a macro in the file generates tests, each word of the file counts, because
/// arguments of the macro name the tests.
fn tests_in(source: &str) -> BTreeSet<&str> {
    let attributed =
        ["#[test]", "#[tokio::test"].into_iter().flat_map(|attribute| source.split(attribute).skip(1));
    let tests: BTreeSet<&str> =
        attributed.filter_map(|rest| rest.split_once("fn ")?.1.split(['(', '<']).next()).collect();
    if tests.iter().any(|name| name.starts_with('$')) {
        return source.split(|c: char| c != '_' && !c.is_alphanumeric()).collect();
    }
    tests
}

/// Returns the tests of the workspace.
fn all_tests() -> BTreeSet<String> {
    let mut sources = Vec::new();
    for folder in ["crates", "tests"] {
        collect_files(&root().join(folder), "rs", &mut sources);
    }
    let mut tests = BTreeSet::new();
    for source in sources {
        let text = std::fs::read_to_string(source).unwrap();
        tests.extend(tests_in(&text).into_iter().map(str::to_owned));
    }
    tests
}

/// Returns the text between backticks.
fn quoted(text: &str) -> impl Iterator<Item = &str> {
    text.split('`').skip(1).step_by(2)
}

fn cells(row: &str) -> impl Iterator<Item = &str> {
    row.trim_matches('|').split('|').map(str::trim)
}

/// Returns each cell below the heading `column`, from every table of a page that has this column.
fn column<'a>(page: &'a str, column: &str) -> Vec<&'a str> {
    let lines: Vec<&str> = page.lines().map(str::trim).collect();
    let is_row = |line: &str| line.starts_with('|');
    let tables = lines.chunk_by(|a, b| is_row(a) == is_row(b)).filter(|lines| is_row(lines[0]));
    let mut found = Vec::new();
    for table in tables {
        if let Some(index) = cells(table[0]).position(|cell| cell == column) {
            found.extend(table.iter().skip(2).map(|row| cells(row).nth(index).unwrap_or_default()));
        }
    }
    found
}

/// Returns the faults in the column `test` of a page's tables: unknown tests, and rows without a test. A cell that
/// begins with "the same" refers to the row above it.
fn faults_in_tables(page: &str, tests: &BTreeSet<String>) -> Vec<String> {
    let mut faults = Vec::new();
    for cell in column(page, "test") {
        let named: Vec<&str> = quoted(cell).collect();
        if named.is_empty() && !cell.starts_with("the same") {
            faults.push(format!("a row without a test: {cell:?}"));
        }
        faults.extend(
            named.iter().filter(|test| !tests.contains(**test)).map(|test| format!("no such test: {test}")),
        );
    }
    faults
}

/// Each test that a document names in a table, or that some pages name in their text, exists in the source.
#[test]
fn tests_named_in_the_documents_exist() {
    let tests = all_tests();
    let mut faults = Vec::new();
    for path in pages() {
        let page = std::fs::read_to_string(&path).unwrap();
        faults.extend(
            faults_in_tables(&page, &tests).into_iter().map(|fault| format!("{}: {fault}", path.display())),
        );
    }
    let rows = column(&document("docs/testing.md"), "test").len();
    assert!(rows > 80, "docs/testing.md has only {rows} rows with tests");

    // In the text of these pages, names with fewer underscores are fields and codes.
    let is_test = |word: &&str| {
        word.matches('_').count() > 2
            && word.chars().all(|c| c == '_' || c.is_ascii_lowercase() || c.is_ascii_digit())
    };
    for (name, least) in
        [("docs/guarantees.md", 20), ("docs/testing.md", 100), ("tests/interop/README.md", 1)]
    {
        let page = document(name);
        let named: Vec<&str> = quoted(&page).filter(is_test).collect();
        assert!(named.len() >= least, "the tests of {name} were not found");
        let missing = named.iter().filter(|test| !tests.contains(**test));
        faults.extend(missing.map(|test| format!("{name}: no such test: {test}")));
    }
    assert!(faults.is_empty(), "{faults:#?}");
}

/// The check reports a wrong test name of any length, a function that is no test, and a row without a test.
#[test]
fn table_with_wrong_test_name_is_reported() {
    let source = "#[test]\nfn log_ends() {}\n#[tokio::test(start_paused = true)]\nasync fn seal_stays() {}\nfn help() {}";
    let tests: BTreeSet<String> = tests_in(source).into_iter().map(str::to_owned).collect();
    assert_eq!(tests, BTreeSet::from(["log_ends".to_owned(), "seal_stays".to_owned()]));

    let generated =
        "macro_rules! table { ($a:ident) => { #[test] fn $a() { super::$a(); } } }\ntable! { log_stays }";
    assert!(tests_in(generated).contains("log_stays"));

    let good = "| test | `effect` |\n|---|---|\n| `log_ends`, `seal_stays` | `none` |\n| the same | |\n";
    assert_eq!(faults_in_tables(good, &tests), Vec::<String>::new());
    for wrong in ["`log_end`", "`log`", "`log_ends`, `help`", "the checker", ""] {
        let page = format!("| fault | test |\n|---|---|\n| a | {wrong} |\n\nText with `code`.\n");
        assert_eq!(faults_in_tables(&page, &tests).len(), 1, "{wrong}");
    }
}

/// The rules that docs/guarantees.md names are exactly the broken rules of the model.
#[test]
fn proof_rules_match_the_broken_rules_of_the_model() {
    let guarantees = document("docs/guarantees.md");
    let rules = guarantees.split_once("### The rules").expect("the section with the rules").1;
    let rules = rules.split_once("\n## ").expect("the section after the rules").0;
    let is_rule = |word: &&str| word.starts_with(|c: char| c.is_ascii_uppercase()) && word.len() > 10;
    let named: BTreeSet<&str> = quoted(rules).filter(is_rule).filter(|word| !word.contains('_')).collect();
    let model = document("tests/model/src/settings.rs");
    let variants = model
        .split_once("pub enum BrokenRule {")
        .expect("the enum of the rules")
        .1
        .split_once('}')
        .unwrap()
        .0;
    let is_name = |line: &&str| !line.is_empty() && line.chars().all(char::is_alphanumeric);
    let variants: BTreeSet<&str> =
        variants.lines().map(|line| line.trim().trim_end_matches(',')).filter(is_name).collect();
    assert_eq!(named, variants);
}

/// The crates in the table of ARCHITECTURE.md are exactly the folders of `crates`, and the page stays short.
#[test]
fn crate_table_lists_every_crate() {
    let map = document("ARCHITECTURE.md");
    let named: BTreeSet<String> =
        column(&map, "crate").into_iter().flat_map(quoted).map(str::to_owned).collect();
    let folders = std::fs::read_dir(root().join("crates")).unwrap().map(|entry| entry.unwrap().path());
    let folders: BTreeSet<String> = folders
        .filter(|path| path.join("Cargo.toml").exists())
        .map(|path| path.file_name().unwrap().to_string_lossy().into_owned())
        .collect();
    assert_eq!(named, folders);
    assert!(
        map.len() <= 12_000,
        "ARCHITECTURE.md has {} bytes: move details to docs/guarantees.md",
        map.len()
    );
}

/// Each relative link in the documents points to an existing file.
#[test]
fn document_links_point_to_existing_files() {
    let mut broken = Vec::new();
    for page in pages() {
        let text = std::fs::read_to_string(&page).unwrap();
        for link in text.split("](").skip(1).filter_map(|rest| Some(rest.split_once(')')?.0)) {
            let file = link.split('#').next().unwrap_or_default();
            let there = page.parent().unwrap().join(file).exists();
            if !file.is_empty() && !link.contains("://") && !there {
                broken.push(format!("{}: {link}", page.display()));
            }
        }
    }
    assert!(broken.is_empty(), "{broken:#?}");
}
