//! A strict reader of the text format of Prometheus.

use std::collections::BTreeMap;

use anyhow::{Context, bail, ensure};

/// The samples of a scrape: the name with its labels, and the value.
pub type Samples = BTreeMap<String, f64>;

/// Reads a scrape in the [text format](https://prometheus.io/docs/instrumenting/exposition_formats/), version 0.0.4.
/// Stricter than a scraper: each family has its help and its type before its samples, in one group, and the buckets of a
/// histogram are in order and end with its count.
///
/// # Errors
/// The first line that breaks the format, or a histogram that contradicts itself.
pub fn read_exposition(text: &str) -> anyhow::Result<Samples> {
    ensure!(text.ends_with('\n'), "the last line does not end");
    let mut samples = Samples::new();
    let mut kinds = BTreeMap::new();
    let (mut help, mut family) = ("", ("", ""));
    for line in text.lines() {
        if let Some(rest) = line.strip_prefix("# HELP ") {
            help = rest.split_once(' ').with_context(|| format!("no help: {line}"))?.0;
        } else if let Some(rest) = line.strip_prefix("# TYPE ") {
            family = rest.split_once(' ').with_context(|| format!("no type: {line}"))?;
            ensure!(family.0 == help, "the type follows no help: {line}");
            ensure!(matches!(family.1, "counter" | "gauge" | "histogram"), "unknown type: {line}");
            ensure!(kinds.insert(family.0, family.1).is_none(), "the family has two groups: {line}");
        } else {
            let (series, value) = line.rsplit_once(' ').with_context(|| format!("no value: {line}"))?;
            let name = series.split('{').next().unwrap_or(series);
            ensure!(belongs(name, family), "the sample is outside its family: {line}");
            ensure!(series == name || series.ends_with('}'), "labels do not end: {line}");
            let value = match value {
                "+Inf" => f64::INFINITY,
                value => value.parse().with_context(|| format!("no number: {line}"))?,
            };
            ensure!(samples.insert(series.to_owned(), value).is_none(), "the sample occurs twice: {line}");
        }
    }
    for (name, _) in kinds.iter().filter(|(_, kind)| **kind == "histogram") {
        check_histogram(name, text, &samples)?;
    }
    Ok(samples)
}

fn belongs(name: &str, (family, kind): (&str, &str)) -> bool {
    match kind {
        "histogram" => {
            name.strip_prefix(family).is_some_and(|suffix| matches!(suffix, "_bucket" | "_sum" | "_count"))
        }
        _ => name == family,
    }
}

/// Checks the buckets of each series of a histogram, which are in the order of their limits.
fn check_histogram(name: &str, text: &str, samples: &Samples) -> anyhow::Result<()> {
    let bucket = format!("{name}_bucket{{");
    let (mut last, mut ends) = (None::<(String, f64, f64)>, 0);
    for line in text.lines().filter(|line| line.starts_with(&bucket)) {
        let (labels, value) = line[bucket.len()..].rsplit_once("} ").context("a bucket has labels")?;
        let value: f64 = value.parse()?;
        let mut limit = None;
        let others: Vec<&str> = labels
            .split(',')
            .filter(|label| match label.strip_prefix("le=\"") {
                Some(text) => {
                    limit = Some(text.trim_end_matches('"').to_owned());
                    false
                }
                None => !label.is_empty(),
            })
            .collect();
        let (series, limit) = (others.join(","), limit.with_context(|| format!("no limit: {line}"))?);
        let limit = if limit == "+Inf" { f64::INFINITY } else { limit.parse()? };
        if let Some((of, before, count)) = &last
            && *of == series
        {
            ensure!(*before < limit && *count <= value, "buckets are not in order: {line}");
        }
        if limit.is_infinite() {
            let total =
                if series.is_empty() { format!("{name}_count") } else { format!("{name}_count{{{series}}}") };
            ensure!(samples.get(&total) == Some(&value), "{total} is not the last bucket: {line}");
            ends += 1;
        }
        last = Some((series, limit, value));
    }
    let count = format!("{name}_count");
    let series = samples.keys().filter(|sample| sample.split('{').next() == Some(&count)).count();
    if ends != series {
        bail!("{name} has {series} series and {ends} last buckets");
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    const TEXT: &str = "# HELP a_total A.\n# TYPE a_total counter\na_total{x=\"1\"} 2\n\
                        # HELP h_seconds H.\n# TYPE h_seconds histogram\n\
                        h_seconds_sum 1.5\nh_seconds_count 3\n\
                        h_seconds_bucket{le=\"0.5\"} 1\nh_seconds_bucket{le=\"+Inf\"} 3\n";

    /// A scrape is read whole; each broken rule is an error.
    #[test]
    fn exposition_breaking_a_rule_is_an_error() {
        assert_eq!(read_exposition(TEXT).unwrap()["a_total{x=\"1\"}"], 2.0);
        let broken = [
            ("# TYPE a_total counter\n", ""),
            ("# HELP a_total A.\n", ""),
            ("a_total{x=\"1\"} 2", "b_total 2"),
            ("a_total{x=\"1\"} 2", "a_total{x=\"1\"} two"),
            ("a_total{x=\"1\"} 2\n", "a_total 1\na_total 1\n"),
            ("{le=\"0.5\"} 1", "{le=\"0.5\"} 4"),
            ("{le=\"+Inf\"} 3", "{le=\"+Inf\"} 4"),
            ("h_seconds_bucket{le=\"+Inf\"} 3\n", ""),
            ("counter", "summary"),
        ];
        for (from, to) in broken {
            let text = TEXT.replacen(from, to, 1);
            assert!(text != TEXT && read_exposition(&text).is_err(), "{text}");
        }
    }
}
