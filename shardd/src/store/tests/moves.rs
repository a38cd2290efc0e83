//! What is moved within the log while the disk fails, somebody deletes, or the power goes.

use std::sync::atomic::AtomicU64;
use std::sync::mpsc;
use std::thread;

use super::*;

/// A store on a disk in memory, with one sealed segment that holds `keys`, flushed.
struct Moving {
    folder: tempfile::TempDir,
    disk: ModelledDisk,
    store: Arc<Store>,
    keys: Vec<String>,
}

impl Moving {
    fn new(keys: usize) -> Moving {
        let (folder, disk) = (quick_folder(), ModelledDisk::default());
        let keys: Vec<String> = (0..keys).map(|key| key.to_string()).collect();
        let store = start(folder.path(), &disk);
        keys.iter().for_each(|key| store.keep_object(key, 0, &kept_as(key)).unwrap());
        store.log.leave(None);
        store.flush_blocking().unwrap();
        Moving { folder, disk, store, keys }
    }

    fn sealed(&self) -> Arc<Segment> {
        self.store.log.segment(1).unwrap()
    }

    /// From now on this happens before each record is written, by its number from 0 on.
    fn on_write(&self, happening: impl Fn(u64) -> std::io::Result<()> + Send + Sync + 'static) {
        let written = AtomicU64::new(0);
        let fault: Fault = Arc::new(move || happening(written.fetch_add(1, Ordering::SeqCst)));
        faults::set(&self.segments(), Faults { write: Some(fault), ..Faults::default() });
    }

    fn fail_flushes(&self, fail: bool) {
        let sync = fail.then(|| error(libc::EIO));
        faults::set(&self.segments(), Faults { sync, ..Faults::default() });
    }

    /// The keys whose records touch the page at an offset of the sealed segment, which cannot be read from now on.
    fn spoil(&self, offset: u64) -> Vec<&str> {
        assert!(self.disk.spoil(&self.segments().join("00000001.seg"), offset));
        let is_hit = |key: &&str| {
            let (_, position, lengths) = self.store.locate(S, &name(key, 0)).unwrap();
            position.offset < offset + BLOCK && offset < position.offset + lengths.record()
        };
        self.keys.iter().map(String::as_str).filter(is_hit).collect()
    }

    fn segments(&self) -> PathBuf {
        self.folder.path().join("segments")
    }

    /// The process ends; with the power goes what was not flushed, by lot.
    fn restart(&mut self, lot: Option<&mut Random>) {
        match lot {
            Some(random) => self.disk.lose_power(&mut |bound| random.next() % bound),
            None => self.disk.crash(),
        }
        faults::set(&self.segments(), Faults::default());
        // The folder's lock goes with the store.
        self.store = start(quick_folder().path(), &ModelledDisk::default());
        self.store = start(self.folder.path(), &self.disk);
    }

    fn check(&self, gone: &[&str]) {
        for key in &self.keys {
            let kept = self.store.get(S, &name(key, 0));
            match gone.contains(&key.as_str()) {
                true => assert!(kept.is_err(), "{key} is back"),
                false => assert_eq!(kept.unwrap().fragment(), kept_as(key).fragments[0], "{key}"),
            }
        }
    }
}

fn start(folder: &Path, disk: &ModelledDisk) -> Arc<Store> {
    let disk = disk.plugged();
    let options =
        StoreOptions { capacity: Some(64 << 20), disk, has_upkeep: false, ..StoreOptions::new(folder) };
    Store::open(options).unwrap()
}

fn kept_as(key: &str) -> Object {
    object(key.parse::<u64>().unwrap() + 1, 2000)
}

/// One such block under a head, or anywhere between small records, kept a node from starting.
#[test]
fn a_block_that_cannot_be_read_costs_a_start_what_lies_in_it_alone() {
    let pages = Moving::new(40).sealed().length().unwrap().div_ceil(BLOCK);
    assert!(pages >= 10, "{pages} pages");
    for page in 0..pages {
        let mut moving = Moving::new(40);
        let hit: Vec<String> = moving.spoil(page * BLOCK).into_iter().map(str::to_owned).collect();
        assert!((1..6).contains(&hit.len()), "{hit:?}");
        moving.restart(None);
        moving.check(&hit.iter().map(String::as_str).collect::<Vec<_>>());
        moving.store.keep_object(&hit[0], 0, &kept_as(&hit[0])).unwrap();
        moving.check(&hit[1..].iter().map(String::as_str).collect::<Vec<_>>());
    }
}

/// What is behind the last record and cannot be read is no room written ahead.
#[test]
fn a_block_that_cannot_be_read_behind_the_last_record_stays() {
    let mut moving = Moving::new(3);
    let segment = moving.sealed();
    let end = segment.length().unwrap().next_multiple_of(BLOCK);
    segment.write_zeros(end..end + BLOCK).unwrap();
    segment.sync().unwrap();
    moving.spoil(end);
    moving.restart(None);
    moving.check(&[]);
    assert_eq!(moving.sealed().length().unwrap(), end + BLOCK);
}

/// Each flush walked the segment anew, and failed anew.
#[test]
fn a_segment_that_is_given_up_is_copied_but_for_what_cannot_be_read() {
    let moving = Moving::new(40);
    let hit = moving.spoil(3 * BLOCK);
    moving.sealed().broken.store(true, Ordering::SeqCst);
    let boot = moving.store.boot();
    moving.store.flush_blocking().unwrap();
    assert_ne!(moving.store.boot(), boot, "some of what was acknowledged is gone");
    assert!(moving.store.log.segment(1).is_none());
    moving.check(&hit);
}

#[test]
fn copies_that_are_not_flushed_replace_nothing_that_was() {
    for seed in 0..40 {
        let mut moving = Moving::new(8);
        moving.fail_flushes(true);
        moving.store.compact(&moving.sealed()).unwrap_err();
        moving.check(&[]);
        if seed % 2 == 1 {
            // The last record that seems to be left in it, and what looks for segments to remove.
            moving.store.delete(&C, "7", 1, None).unwrap();
            moving.fail_flushes(false);
            moving.keys.pop();
        }
        moving.restart(Some(&mut Random(seed)));
        moving.check(&[]);
        assert_eq!(moving.store.usage().fragments, moving.store.verified() as u64);
    }
}

#[test]
fn a_compaction_that_ends_in_the_middle_takes_nothing_that_was_flushed() {
    for seed in 0..40 {
        let mut moving = Moving::new(3);
        moving.on_write(|written| if written == 2 { error(libc::ENOSPC)() } else { Ok(()) });
        moving.store.compact(&moving.sealed()).unwrap_err();
        faults::set(&moving.segments(), Faults::default());
        moving.check(&[]);
        moving.store.delete(&C, "2", 1, None).unwrap();
        moving.keys.pop();
        moving.restart(Some(&mut Random(seed)));
        moving.check(&[]);
    }
}

#[test]
fn what_is_deleted_during_or_after_a_compaction_that_fails_does_not_come_back() {
    let mut moving = Moving::new(3);
    let deleting = Arc::downgrade(&moving.store);
    moving.on_write(move |written| {
        if written == 1 {
            deleting.upgrade().unwrap().delete(&C, "0", 1, None).unwrap();
        }
        if written == 2 { error(libc::ENOSPC)() } else { Ok(()) }
    });
    moving.store.compact(&moving.sealed()).unwrap_err();
    faults::set(&moving.segments(), Faults::default());
    moving.store.delete(&C, "1", 1, None).unwrap();
    moving.store.flush_blocking().unwrap();
    moving.check(&["0", "1"]);
    moving.restart(None);
    moving.check(&["0", "1"]);
    // And with a flush before it ends, which covers the deletion.
    let mut moving = Moving::new(3);
    let deleting = Arc::downgrade(&moving.store);
    moving.on_write(move |written| match written {
        0 => Ok(()),
        1 => {
            let store = deleting.upgrade().unwrap();
            store.delete(&C, "0", 1, None).unwrap();
            store.flush_blocking().unwrap();
            error(libc::EIO)()
        }
        _ => error(libc::EIO)(),
    });
    moving.store.compact(&moving.sealed()).unwrap_err();
    moving.restart(None);
    moving.check(&["0"]);
}

#[test]
fn a_copy_that_is_damaged_before_it_is_safe_is_replaced_by_its_original() {
    let moving = Moving::new(3);
    let reading = Arc::downgrade(&moving.store);
    let checked = Arc::new(AtomicU64::new(0));
    let done = checked.clone();
    let sync: Fault = Arc::new(move || {
        let Some(store) = reading.upgrade() else { return Ok(()) };
        let copy = store.index.lock().position(S, &name("1", 0)).unwrap();
        if copy.segment == 1 {
            return Ok(());
        }
        store.log.segment(copy.segment).unwrap().file().write(copy.offset, &[0; 64]).unwrap();
        assert_eq!(store.get(S, &name("1", 0)).unwrap().fragment(), kept_as("1").fragments[0]);
        done.fetch_add(1, Ordering::SeqCst);
        Ok(())
    });
    faults::set(&moving.segments(), Faults { sync: Some(sync), ..Faults::default() });
    moving.store.compact(&moving.sealed()).unwrap();
    faults::set(&moving.segments(), Faults::default());
    assert_eq!(checked.load(Ordering::SeqCst), 1);
    assert!(moving.store.log.segment(1).is_some(), "one record of it counts again");
    moving.check(&[]);
    moving.store.compact(&moving.sealed()).unwrap();
    assert!(moving.store.log.segment(1).is_none());
    moving.check(&[]);
}

#[test]
fn a_record_that_is_still_being_written_while_its_segment_is_given_up_stays() {
    let moving = Moving::new(0);
    let store = moving.store.clone();
    store.keep_object("0", 0, &kept_as("0")).unwrap();
    let (reached, has_reached) = mpsc::channel();
    let (go_on, may_go_on) = mpsc::channel::<()>();
    let may_go_on = Mutex::new(may_go_on);
    let looking = Arc::downgrade(&store);
    moving.on_write(move |written| {
        if written == 0 {
            reached.send(()).unwrap();
            may_go_on.lock().recv().unwrap();
        } else if let Some(store) = looking.upgrade().filter(|_| written == 1) {
            // The copy of the other record: the walk has begun.
            go_on.send(()).unwrap();
            while store.has(S, &name("1", 0)).is_err() {
                thread::yield_now();
            }
        }
        Ok(())
    });
    let late = store.clone();
    let writer = thread::spawn(move || late.keep_object("1", 0, &kept_as("1")).unwrap());
    has_reached.recv().unwrap();
    let [segment] = &store.log.segments()[..] else { panic!("one segment") };
    segment.broken.store(true, Ordering::SeqCst);
    store.log.leave(None);
    store.flush_blocking().unwrap();
    writer.join().unwrap();
    for _ in 0..2 {
        assert_eq!(store.get(S, &name("1", 0)).unwrap().fragment(), kept_as("1").fragments[0]);
        store.flush_blocking().unwrap();
    }
    assert!(store.log.segments_where(|segment| segment.broken.load(Ordering::SeqCst)).is_empty());
}

/// Two requests that want their fragments flushed: the first one's flush fails and takes the other's with it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_put_that_was_lost_before_it_was_flushed_is_not_said_to_be_flushed() {
    use axum::body::Body;
    use common::wire::fragment_prefix;
    use http::Request;
    use tower::ServiceExt;

    let moving = Moving::new(0);
    let store = moving.store.clone();
    let app = crate::api::app_for(store.clone(), crate::Limits::default(), None, None);
    let put = |key: &'static str| {
        let object = kept_as(key);
        let body = [&fragment_prefix(&object.fpcc)[..], &object.fragments[0]].concat();
        let request = Request::post(format!("/objects/{key}/1/fragment/0?flush=1"));
        app.clone().oneshot(request.body(Body::from(body)).unwrap())
    };
    let (failing, second) = (Arc::downgrade(&store), Mutex::new(Some(put("1"))));
    let runtime = tokio::runtime::Handle::current();
    // The flush is handed to another thread then: the event loop goes on.
    store.flushing.was_short.store(false, Ordering::SeqCst);
    let (started, answered) = mpsc::channel();
    let sync: Fault = Arc::new(move || {
        let (Some(store), Some(other)) = (failing.upgrade(), second.lock().take()) else { return Ok(()) };
        started.send(runtime.spawn(other)).unwrap();
        while store.has(S, &name("1", 0)).is_err() {
            thread::yield_now();
        }
        let lost = store.index.lock().position(S, &name("1", 0)).unwrap();
        store.log.segment(lost.segment).unwrap().file().write(lost.offset, &[0; 64]).unwrap();
        error(libc::EIO)()
    });
    faults::set(&moving.segments(), Faults { sync: Some(sync), ..Faults::default() });
    assert_eq!(tokio::spawn(put("0")).await.unwrap().unwrap().status(), 500);
    let other = answered.recv().unwrap().await.unwrap().unwrap();
    assert!(store.has(S, &name("1", 0)).is_err());
    assert_eq!(other.status(), 500);
    assert_eq!(put("1").await.unwrap().status(), 200);
}
