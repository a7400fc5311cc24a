//! The bound of one piece of work on a file: counts end it, never a clock, so a run is reproducible.

/// Rows of a slice.
pub const SLICE_ROWS: usize = 256;

/// Bytes of a slice. A row that begins below it is completed.
pub const SLICE_BYTES: usize = 64 * 1_024;

/// The rows and bytes that one slice has used. Each slice takes at least one row.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Slice {
    rows: usize,
    bytes: usize,
}

impl Slice {
    /// A slice that has used nothing.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// A slice that takes one row.
    #[cfg(test)]
    pub(crate) const fn of_one_row() -> Self {
        Self { rows: SLICE_ROWS - 1, bytes: 0 }
    }

    /// Whether the slice takes no further row.
    #[must_use]
    pub const fn is_spent(&self) -> bool {
        self.rows >= SLICE_ROWS || self.bytes >= SLICE_BYTES
    }

    /// Whether this many more rows, with so many bytes together, stay within the bound.
    pub(crate) const fn fits(self, rows: usize, bytes: usize) -> bool {
        self.rows + rows <= SLICE_ROWS && self.bytes.saturating_add(bytes) <= SLICE_BYTES
    }

    /// Counts one row of this many bytes.
    pub const fn count(&mut self, bytes: usize) {
        self.rows += 1;
        self.bytes = self.bytes.saturating_add(bytes);
    }

    /// How many more rows of at most this size the slice certainly takes; at least one.
    pub(crate) const fn rows_left(self, row_bytes: usize) -> usize {
        let (rows, bytes) = (SLICE_ROWS.saturating_sub(self.rows), SLICE_BYTES.saturating_sub(self.bytes));
        let fitting = bytes / row_bytes;
        match if fitting < rows { fitting } else { rows } {
            0 => 1,
            left => left,
        }
    }

    /// Rows used so far.
    #[must_use]
    pub const fn rows(&self) -> usize {
        self.rows
    }

    /// Bytes used so far.
    #[must_use]
    pub const fn bytes(&self) -> usize {
        self.bytes
    }
}
