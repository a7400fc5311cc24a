//! Setup of the SQLite library: its memory, and a check of its version.

use std::sync::Once;

use rusqlite::ffi;

/// The first SQLite without the WAL-reset bug, which can lose committed data.
const FIRST_SAFE_VERSION: i32 = 3_051_003;

/// Whether the SQLite in this binary is free of the WAL-reset bug.
#[must_use]
pub fn sqlite_is_safe() -> bool {
    rusqlite::version_number() >= FIRST_SAFE_VERSION
}

/// Reduces the memory of an open file to a quarter of the default, and removes a lock from each allocation:
/// SQLite's allocation statistics are not used. Must run before the first connection of the process; later it
/// has no effect.
pub(super) fn configure_memory_once() {
    static CONFIGURED: Once = Once::new();
    CONFIGURED.call_once(|| {
        // SAFETY: the options take the arguments given (a null buffer with two zero ints; two ints; one int)
        // by sqlite3.h. `sqlite3_config` must not run beside other SQLite calls. Every connection of this
        // crate is opened after this call by way of `Once`. SQLite rejects the option with an error if it has
        // been initialized already.
        #[allow(unsafe_code)]
        let refused = unsafe {
            let null = std::ptr::null_mut::<std::ffi::c_void>();
            let page_cache = ffi::sqlite3_config(ffi::SQLITE_CONFIG_PAGECACHE, null, 0_i32, 0_i32);
            let lookaside = ffi::sqlite3_config(ffi::SQLITE_CONFIG_LOOKASIDE, 128_i32, 0_i32);
            let statistics = ffi::sqlite3_config(ffi::SQLITE_CONFIG_MEMSTATUS, 0_i32);
            [page_cache, lookaside, statistics] != [ffi::SQLITE_OK; 3]
        };
        if refused {
            tracing::debug!(
                impact = "open files use more memory",
                "SQLite memory not configured: already initialized"
            );
        }
    });
}
