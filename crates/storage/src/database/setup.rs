//! SQLite as a whole: its memory, and whether this build of it is fit for use.

use std::sync::Once;

use rusqlite::ffi;

/// The first SQLite without the WAL-reset bug, which can lose committed data.
const FIRST_SAFE_VERSION: i32 = 3_051_003;

/// Whether the SQLite in this binary is free of the WAL-reset bug.
#[must_use]
pub fn sqlite_is_safe() -> bool {
    rusqlite::version_number() >= FIRST_SAFE_VERSION
}

/// Makes an open file cost a quarter of the memory it costs by default, and an allocation no lock: nobody asks SQLite how
/// much it has allocated. Must come before the first connection of the
/// process; later it changes nothing.
pub(super) fn configure_memory_once() {
    static CONFIGURED: Once = Once::new();
    CONFIGURED.call_once(|| {
        // SAFETY: the options take the arguments given (a null buffer with two zero ints; two ints; one int) by sqlite3.h.
        // `sqlite3_config` must not run beside other SQLite calls: every connection of this crate is opened after
        // this call by way of `Once`, and SQLite refuses the option with an error if somebody else has initialized
        // it already.
        #[allow(unsafe_code)]
        let refused = unsafe {
            let null = std::ptr::null_mut::<std::ffi::c_void>();
            let page_cache = ffi::sqlite3_config(ffi::SQLITE_CONFIG_PAGECACHE, null, 0_i32, 0_i32);
            let lookaside = ffi::sqlite3_config(ffi::SQLITE_CONFIG_LOOKASIDE, 128_i32, 0_i32);
            let statistics = ffi::sqlite3_config(ffi::SQLITE_CONFIG_MEMSTATUS, 0_i32);
            [page_cache, lookaside, statistics] != [ffi::SQLITE_OK; 3]
        };
        if refused {
            tracing::debug!("SQLite was in use before its memory could be configured: open files cost more");
        }
    });
}
