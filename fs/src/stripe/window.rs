//! How many bytes of fragments are on their way at once: so many as the nodes take in a part of the time an object has. Over
//! a slow line all that waits to be stored, sent at once, would miss its time, and be sent again, for ever.
//!
//! As TCP keeps its window (RFC 5681): with each object that was quick there may be as much more, after one that was not
//! half as much. It tells as well what is usual of an object's first answer, for nobody to be called late while all are.

use std::pin::pin;
use std::time::Duration;

use parking_lot::Mutex;
use tokio::sync::Semaphore;
use tokio::time::{Instant, timeout_at};

/// The least it is, in KiB; what is larger passes as if it were so large.
const LEAST: usize = 8 << 10;
/// An object was quick that took at most such a part of its time, and slow from such a part on.
const QUICK: u32 = 8;
const SLOW: u32 = 4;
/// From this many KiB on, an object is large: the time to its first answer tells of the line.
const LARGE: usize = 256;
/// What that is for each KiB as long as nobody has answered: two seconds for an object of 4 MiB.
const FIRST_PACE: Duration = Duration::from_micros(300);

/// See the module.
pub(super) struct Window {
    /// The longest an object may take.
    limit: Duration,
    /// The most that may be on its way, in KiB.
    most: usize,
    large: Part,
    /// For little objects, which wait for no large ones.
    little: Part,
    line: Mutex<Line>,
}

/// What is known of the line to the nodes.
struct Line {
    /// When an object last became *stored*.
    stored: Instant,
    /// For how long nodes lately kept silent first, for each KiB of an object.
    pace: Duration,
}

struct Part {
    /// One for each KiB that may yet be sent.
    permits: Semaphore,
    size: Mutex<Size>,
}

struct Size {
    /// KiB that may be on their way.
    kib: usize,
    /// Permits in use that are too many since it became smaller.
    owed: usize,
    /// When it last became smaller: how long what was sent before took says nothing of it.
    shrunk: Instant,
}

/// The right to send an object, until this is dropped.
pub(super) struct Admission<'a> {
    window: &'a Window,
    part: &'a Part,
    cost: usize,
}

impl Window {
    /// For objects that may take so long, and at most so many bytes of fragments.
    pub(super) fn new(limit: Duration, most_bytes: u64) -> Window {
        Window {
            limit,
            most: (most_bytes >> 10).clamp(LEAST as u64, Semaphore::MAX_PERMITS as u64) as usize,
            large: Part::new(),
            little: Part::new(),
            line: Mutex::new(Line { stored: Instant::now(), pace: FIRST_PACE }),
        }
    }

    /// Wait until there is room for so many bytes of fragments, first come, first served. None when nothing has become
    /// *stored* for as long as an object may take.
    pub(super) async fn admit(&self, bytes: usize) -> Option<Admission<'_>> {
        let kib = bytes.div_ceil(1 << 10);
        let (cost, part) = (kib.clamp(1, LEAST), if kib < LARGE { &self.little } else { &self.large });
        let permits = self.while_stored(part.permits.acquire_many(cost as u32)).await?;
        permits.expect("the semaphore is never closed").forget();
        Some(Admission { window: self, part, cost })
    }

    /// What comes of something that waits for objects; none when none has become *stored* for as long as one may take.
    pub(super) async fn while_stored<T>(&self, work: impl Future<Output = T>) -> Option<T> {
        let (mut work, mut end) = (pin!(work), Instant::now() + self.limit);
        loop {
            if let Ok(done) = timeout_at(end, &mut work).await {
                return Some(done);
            }
            let later = self.line.lock().stored + self.limit;
            if later <= end {
                return None;
            }
            end = later;
        }
    }

    /// The first node answered that was sent a part of an object of so many bytes of fragments.
    pub(super) fn answered(&self, bytes: usize, after: Duration) {
        let kib = bytes >> 10;
        if kib >= LARGE {
            let (mut line, pace) = (self.line.lock(), after / kib as u32);
            line.pace = pace.max((3 * line.pace + pace) / 4);
        }
    }

    /// How long it lately took until the first node answered, for an object of so many bytes of fragments.
    pub(super) fn usual(&self, bytes: usize) -> Duration {
        self.line.lock().pace * (bytes >> 10) as u32
    }
}

impl Part {
    fn new() -> Part {
        let size = Mutex::new(Size { kib: LEAST, owed: 0, shrunk: Instant::now() });
        Part { permits: Semaphore::new(LEAST), size }
    }

    /// Unless less than half of it is in use: what was quick then says nothing of more.
    fn grow(&self, by: usize, most: usize) {
        let mut size = self.size.lock();
        if 2 * self.permits.available_permits() <= size.kib {
            let more = by.min(most - size.kib);
            size.kib += more;
            self.give(&mut size, more);
        }
    }

    /// Because of what was sent at a time: what was sent before it last became smaller tells of another size.
    fn shrink(&self, sent: Instant, to: impl Fn(usize) -> usize) {
        let mut size = self.size.lock();
        if sent >= size.shrunk {
            let less = size.kib - to(size.kib).max(LEAST);
            size.kib -= less;
            size.owed += less - self.permits.forget_permits(less);
            size.shrunk = Instant::now();
        }
    }

    fn give(&self, size: &mut Size, permits: usize) {
        let settled = permits.min(size.owed);
        size.owed -= settled;
        self.permits.add_permits(permits - settled);
    }
}

impl Admission<'_> {
    /// It is *stored*, so long after it was sent.
    pub(super) fn stored(&self, sent: Instant) {
        let (took, window) = (sent.elapsed(), self.window);
        window.line.lock().stored = Instant::now();
        if took <= window.limit / QUICK {
            self.part.grow(self.cost, window.most);
        } else if took >= window.limit / SLOW {
            self.part.shrink(sent, |kib| kib / 2);
        }
    }

    /// Its time is over.
    pub(super) fn missed(&self, sent: Instant) {
        self.part.shrink(sent, |_| LEAST);
    }
}

impl Drop for Admission<'_> {
    fn drop(&mut self) {
        self.part.give(&mut self.part.size.lock(), self.cost);
    }
}

#[cfg(test)]
mod tests {
    use tokio::time::{advance, timeout};

    use super::*;

    const LIMIT: Duration = Duration::from_secs(32);
    const OBJECT: usize = 4 << 20;
    const OBJECT_KIB: usize = OBJECT >> 10;

    fn size(window: &Window) -> usize {
        window.large.size.lock().kib
    }

    async fn is_full(window: &Window) -> bool {
        timeout(Duration::from_millis(1), window.admit(OBJECT)).await.is_err()
    }

    #[tokio::test(start_paused = true)]
    async fn quick_objects_make_room_for_more_and_slow_ones_for_fewer() {
        let window = Window::new(LIMIT, 64 << 20);
        let pair = [window.admit(OBJECT).await.unwrap(), window.admit(OBJECT).await.unwrap()];
        assert!(is_full(&window).await);
        assert!(window.admit(4096).await.is_some(), "little ones do not wait for them");
        pair.iter().for_each(|object| object.stored(Instant::now()));
        assert_eq!(size(&window), LEAST + 2 * OBJECT_KIB);
        let sent = Instant::now();
        advance(LIMIT / SLOW).await;
        pair.iter().for_each(|object| object.stored(sent));
        assert_eq!(size(&window), LEAST, "what was sent together tells of one size");
        drop(pair);
        let pair = (window.admit(OBJECT).await.unwrap(), window.admit(OBJECT).await.unwrap());
        assert!(is_full(&window).await);
        pair.0.stored(Instant::now() - LIMIT / SLOW + Duration::from_secs(1));
        assert_eq!(size(&window), LEAST, "neither quick nor slow");
    }

    #[tokio::test(start_paused = true)]
    async fn it_has_its_bounds_and_what_is_in_use_is_taken_back_as_it_comes() {
        let window = Window::new(LIMIT, 20 << 20);
        let object = window.admit(1 << 20).await.unwrap();
        object.stored(Instant::now());
        assert_eq!(size(&window), LEAST, "hardly any of it was in use");
        drop(object);
        let object = window.admit(8 << 20).await.unwrap();
        (0..9).for_each(|_| object.stored(Instant::now()));
        assert_eq!(size(&window), 20 << 10);
        drop(object);
        let mut objects = Vec::new();
        for _ in 0..5 {
            objects.push(window.admit(OBJECT).await.unwrap());
        }
        advance(LIMIT).await;
        objects[0].missed(Instant::now());
        assert_eq!(size(&window), LEAST);
        objects.drain(..3);
        assert!(is_full(&window).await, "two are on their way");
        objects.pop();
        assert!(!is_full(&window).await);
        objects.clear();
        let larger = window.admit(16 << 20).await.unwrap();
        assert!(is_full(&window).await, "it passes alone");
        drop(larger);
    }

    #[tokio::test(start_paused = true)]
    async fn who_waits_does_so_as_long_as_anything_is_stored() {
        let window = Window::new(LIMIT, 64 << 20);
        let first = window.admit(8 << 20).await.unwrap();
        let wait = async {
            let began = Instant::now();
            (window.admit(OBJECT).await.is_some(), began.elapsed())
        };
        let (waited, ()) = tokio::join!(wait, async {
            for _ in 0..3 {
                tokio::time::sleep(LIMIT / 2).await;
                // Neither quick nor slow.
                first.stored(Instant::now() - LIMIT / 5);
            }
        });
        assert_eq!(waited, (false, LIMIT / 2 * 3 + LIMIT));
        drop(first);
        assert!(window.admit(OBJECT).await.is_some());
    }

    #[tokio::test(start_paused = true)]
    async fn what_is_usual_of_an_object_goes_by_its_size() {
        let window = Window::new(LIMIT, 64 << 20);
        let usual = |bytes| window.usual(bytes).as_secs_f64();
        window.answered(OBJECT, Duration::from_secs(4));
        window.answered(4096, Duration::ZERO);
        assert!((3.9..4.1).contains(&usual(OBJECT)) && (0.9..1.1).contains(&usual(OBJECT / 4)));
        (0..9).for_each(|_| window.answered(OBJECT, Duration::ZERO));
        assert!(usual(OBJECT) < 0.5, "and what is over is soon forgotten");
    }
}
