//! Charts of the measurements.

use std::path::Path;

use anyhow::Result;
use plotters::prelude::*;

use crate::numbers::thousands;
use crate::results::Measured;

/// Sizes in pixels.
const LABELS: i32 = 170;
const PANEL: i32 = 230;
const BARS: i32 = 150;
const ROW: i32 = 20;
const HEAD: i32 = 62;

/// The colours of bars: Dormouse, the limit, and the others.
const OURS: RGBColor = RGBColor(0xb3, 0x5c, 0x1e);
const LIMIT: RGBColor = RGBColor(0x99, 0x99, 0x99);
const OTHERS: RGBColor = RGBColor(0x4a, 0x7a, 0xa8);

/// Returns the file name of a family.
#[must_use]
pub fn file_name(family: &str) -> String {
    let words: Vec<&str> = family
        .split(|letter: char| !letter.is_ascii_alphanumeric())
        .filter(|word| !word.is_empty())
        .collect();
    format!("{}.svg", words.join("-"))
}

/// Draws a panel for each scenario of a family, with a bar for each target. The length of a bar is its share of the
/// fastest target. Returns whether there was anything to compare.
///
/// # Errors
/// If the file cannot be written.
pub fn draw(file: &Path, family: &[&Measured]) -> Result<bool> {
    let is_drawn =
        |target: &str| family.iter().any(|one| one.line(target).is_some_and(|line| !line.rounds.is_empty()));
    let targets: Vec<&str> =
        family[0].lines.iter().map(|line| line.target.as_str()).filter(|target| is_drawn(target)).collect();
    if targets.len() < 2 {
        return Ok(false);
    }
    let width = LABELS + PANEL * i32::try_from(family.len())?;
    let height = HEAD + ROW * i32::try_from(targets.len())? + 8;
    let area = SVGBackend::new(file, (u32::try_from(width)?, u32::try_from(height)?)).into_drawing_area();
    area.fill(&WHITE)?;
    let unit = if family[0].bytes { "bytes per second" } else { "per second" };
    area.draw(&Text::new(format!("{}: {unit}", family[0].family), (10, 10), ("sans-serif", 18)))?;
    let font = ("sans-serif", 13);
    for (row, target) in targets.iter().enumerate() {
        area.draw(&Text::new((*target).to_owned(), (10, HEAD + ROW * i32::try_from(row)?), font))?;
    }
    for (panel, scenario) in family.iter().enumerate() {
        let left = LABELS + PANEL * i32::try_from(panel)?;
        area.draw(&Text::new(scenario.column.clone(), (left, HEAD - 20), font))?;
        let rate = |target: &str| scenario.line(target)?.median(|round| round.per_second);
        let most = targets.iter().filter_map(|target| rate(target)).fold(f64::MIN_POSITIVE, f64::max);
        for (row, target) in targets.iter().enumerate() {
            let Some(rate) = rate(target) else { continue };
            let top = HEAD + ROW * i32::try_from(row)?;
            let right = left + ((rate / most * f64::from(BARS)).round() as i32).max(1);
            area.draw(&Rectangle::new([(left, top), (right, top + ROW - 6)], colour(target).filled()))?;
            area.draw(&Text::new(thousands(rate), (right + 5, top), font))?;
        }
    }
    area.present()?;
    Ok(true)
}

fn colour(target: &str) -> RGBColor {
    match target {
        "echo" => LIMIT,
        target if target.starts_with("dormouse") => OURS,
        _ => OTHERS,
    }
}

#[cfg(test)]
mod tests {
    use super::file_name;

    /// The file name of a plot is derived from the name of its scenario family.
    #[test]
    fn plot_file_is_named_after_the_family() {
        assert_eq!(file_name("set 128 B, 1 subject"), "set-128-B-1-subject.svg");
    }
}
