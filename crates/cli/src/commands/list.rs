//! Long lists for people: printed as they come, not held in memory.

use dormouse_client::Pages;

use crate::error::Failure;
use crate::session::Session;

/// How many rows one table has.
const TABLE_ROWS: usize = 500;

/// Prints what the pages hold as tables, or notes that there is nothing.
pub(super) async fn tables<T: Send + 'static>(
    session: &Session,
    titles: &[&str],
    nothing: &str,
    pages: &mut Pages<T>,
    row: impl Fn(&T) -> Vec<String>,
) -> Result<(), Failure> {
    let mut rows = Vec::new();
    let mut printed = false;
    while let Some(item) = pages.next().await {
        rows.push(row(&item?));
        if rows.len() == TABLE_ROWS {
            session.output.table(titles, std::mem::take(&mut rows))?;
            printed = true;
        }
    }
    if rows.is_empty() {
        if !printed {
            session.output.note(nothing);
        }
        return Ok(());
    }
    session.output.table(titles, rows)
}
