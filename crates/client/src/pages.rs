//! Long results as a sequence of pages, pulled by the client, one or two pages ahead of the reader.

use std::future::Future;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::vec;

use dormouse_protocol::Position;
use dormouse_runtime::Tasks;
use tokio::sync::mpsc;

use crate::error::Error;

/// The items of a long result, in order. While the application reads one page, the client requests the next
/// one, and at most the one after it. If the reader is slow, the pages stay at the server. For keys, and
/// close to a limit, the client requests one page at a time.
///
/// Each page shows the subject at the time when that page was read, which may be after the start of the
/// sequence. After an error the sequence ends. Dropping it abandons requests in flight.
///
/// A value that does not fit on a page is fetched separately. If no reply can carry it, it is omitted, and
/// its message has `value_omitted` set. A message that was removed by then is left out. If another message
/// has replaced it under its key, that message is returned instead: at its own position when reading upwards,
/// and at the position of the old message when reading in reverse, even beyond the end of the range. So no
/// key is missed that exists during the whole read.
///
/// It is a [`futures::Stream`]; [`next`](Self::next) and [`all`](Self::all) work without that trait.
#[derive(Debug)]
pub struct Pages<T> {
    pages: mpsc::Receiver<Result<Page<T>, Error>>,
    items: vec::IntoIter<T>,
    ended: bool,
    first_position: Option<Position>,
    page_position: Option<Position>,
}

#[derive(Debug)]
pub(crate) struct Page<T> {
    pub(crate) items: Vec<T>,
    pub(crate) last: bool,
    /// The position at which it was read; `None` if it has none.
    pub(crate) position: Option<Position>,
}

/// A source of pages.
pub(crate) trait PageSource<T>: Send + 'static {
    /// Reads the next page. Not called again after the last one or an error.
    fn next_page(&mut self) -> impl Future<Output = Result<Page<T>, Error>> + Send;
}

impl<T: Send + 'static> Pages<T> {
    pub(crate) fn read(tasks: &Tasks, source: impl PageSource<T>) -> Self {
        // Capacity 1, reserved before the source continues: one page ahead of the reader, and the one being
        // requested.
        let (sender, pages) = mpsc::channel(1);
        let stop = tasks.stop().clone();
        tasks.spawn("pages", async move {
            tokio::select! {
                biased;
                () = stop.requested() => {}
                () = sender.closed() => {}
                () = read_ahead(source, &sender) => {}
            }
        });
        let items = Vec::new().into_iter();
        Self { pages, items, ended: false, first_position: None, page_position: None }
    }

    /// The position of the subject at which the first page was read. It is set once that page has arrived:
    /// after the first [`next`](Self::next). The items of this sequence and then the
    /// [`changes`](crate::Kv::changes) after this position together give the current state, regardless of
    /// concurrent writes.
    ///
    /// `None` if no request was needed, and for pages that are not about a subject.
    #[must_use]
    pub const fn position(&self) -> Option<Position> {
        self.first_position
    }

    /// The position at which the page of the newest item was read, or the last page if it is empty.
    #[must_use]
    pub const fn page_position(&self) -> Option<Position> {
        self.page_position
    }

    /// The next item; `None` after the last. Cancelling the wait loses no item.
    ///
    /// # Errors
    /// The error of reading the next page, see the call that made the sequence; [`Error::Closed`] if the
    /// client was closed before the last page. The sequence ends with the error.
    pub async fn next(&mut self) -> Option<Result<T, Error>> {
        std::future::poll_fn(|cx| self.poll_item(cx)).await
    }

    /// All remaining items. If the call is cancelled, the items that were read so far are lost.
    ///
    /// # Errors
    /// Those of [`next`](Self::next).
    pub async fn all(mut self) -> Result<Vec<T>, Error> {
        let mut items = Vec::new();
        while let Some(item) = self.next().await {
            items.push(item?);
        }
        Ok(items)
    }

    fn poll_item(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<T, Error>>> {
        loop {
            if let Some(item) = self.items.next() {
                return Poll::Ready(Some(Ok(item)));
            }
            if self.ended {
                return Poll::Ready(None);
            }
            match std::task::ready!(self.pages.poll_recv(cx)) {
                Some(Ok(page)) => {
                    self.ended = page.last;
                    self.first_position = self.first_position.or(page.position);
                    self.page_position = page.position;
                    self.items = page.items.into_iter();
                }
                Some(Err(error)) => {
                    self.ended = true;
                    return Poll::Ready(Some(Err(error)));
                }
                // Reading stopped before the last page: without an error, this would look like the end.
                None => {
                    self.ended = true;
                    return Poll::Ready(Some(Err(Error::Closed)));
                }
            }
        }
    }
}

impl<T: Send + Unpin + 'static> futures::Stream for Pages<T> {
    type Item = Result<T, Error>;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        self.poll_item(cx)
    }
}

async fn read_ahead<T>(mut source: impl PageSource<T>, pages: &mpsc::Sender<Result<Page<T>, Error>>) {
    while let Ok(slot) = pages.reserve().await {
        let page = source.next_page().await;
        let ended = page.as_ref().map_or(true, |page| page.last);
        slot.send(page);
        if ended {
            return;
        }
    }
}
