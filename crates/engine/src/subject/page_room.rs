//! The memory that the pages of all subjects may hold while they are read, in shares of tenants.
//!
//! A tenant may hold half of what the others leave. The last eighth is for tenants that hold nothing. So a tenant with many
//! pages never makes the first page of another wait.

use std::collections::BTreeMap;
use std::sync::Arc;

use dormouse_runtime::Lock;

use crate::api::TenantId;

/// Bytes that all pages may hold.
pub(super) const PAGE_BYTES: u64 = 64 * 1_024 * 1_024;

/// The least that a page counts, so that the pages are fewer than the jobs of requests in the SQLite pool.
const LEAST_BYTES: u64 = PAGE_BYTES / 512;

/// See the [module](self). Cloning shares it.
#[derive(Debug, Clone, Default)]
pub(crate) struct PageRoom(Arc<Lock<RoomUse>>);

#[derive(Debug, Default)]
struct RoomUse {
    all: u64,
    /// Only tenants that hold something.
    of: BTreeMap<TenantId, u64>,
}

impl PageRoom {
    /// Reserves room for a page whose result has at most `bytes` bytes. `None` if the tenant must wait. A page never
    /// counts more than all of the room, so each fits if there is no other.
    pub(super) fn try_reserve(&self, tenant: TenantId, bytes: usize) -> Option<PageBytes> {
        let bytes = u64::try_from(bytes).unwrap_or(u64::MAX).clamp(LEAST_BYTES, PAGE_BYTES);
        let mut used = self.0.lock();
        let own = used.of.get(&tenant).copied().unwrap_or(0);
        if bytes > share(own, used.all - own).saturating_sub(own) {
            return None;
        }
        used.all += bytes;
        used.of.insert(tenant, own + bytes);
        Some(PageBytes { room: self.clone(), tenant, bytes })
    }
}

/// What a tenant that holds `own` bytes may hold, beside `others` bytes of other tenants.
const fn share(own: u64, others: u64) -> u64 {
    if own == 0 { PAGE_BYTES - others } else { (PAGE_BYTES - PAGE_BYTES / 8).saturating_sub(others) / 2 }
}

/// The room of one page. A drop returns it.
#[derive(Debug)]
pub(super) struct PageBytes {
    room: PageRoom,
    tenant: TenantId,
    bytes: u64,
}

impl Drop for PageBytes {
    fn drop(&mut self) {
        let mut used = self.room.0.lock();
        used.all -= self.bytes;
        if let Some(own) = used.of.get_mut(&self.tenant) {
            *own -= self.bytes;
            if *own == 0 {
                used.of.remove(&self.tenant);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PAGE: usize = 1_024 * 1_024;

    /// However many pages a tenant asks for, each of eight further tenants gets its first page, and all room comes back.
    #[test]
    fn page_flood_leaves_first_page_of_others() {
        let room = PageRoom::default();
        let mut pages = Vec::new();
        for tenant in [1, 2, 3].map(TenantId::new) {
            while let Some(page) = room.try_reserve(tenant, PAGE) {
                pages.push(page);
            }
        }
        for tenant in 4..12 {
            pages.push(room.try_reserve(TenantId::new(tenant), PAGE).expect("the reserve has room"));
        }
        drop(pages);
        let used = room.0.lock();
        assert_eq!((used.all, used.of.len()), (0, 0));
    }

    /// A page that is larger than all of the room fits alone; beside it none does.
    #[test]
    fn page_above_room_fits_alone() {
        let room = PageRoom::default();
        let page = room.try_reserve(TenantId::new(1), usize::MAX).expect("the room is empty");
        assert!(room.try_reserve(TenantId::new(2), 0).is_none());
        drop(page);
        assert!(room.try_reserve(TenantId::new(2), 0).is_some());
    }
}
