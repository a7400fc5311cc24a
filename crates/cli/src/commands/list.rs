//! Long lists as tables: printed page by page, not held in memory.

use dormouse_client::Pages;

use crate::error::Failure;
use crate::session::Session;

/// Number of rows of one table.
const TABLE_ROWS: usize = 500;

/// Prints the items of the pages as tables, or `nothing` if there are none.
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
            session.output.info_line(nothing);
        }
        return Ok(());
    }
    session.output.table(titles, rows)
}
