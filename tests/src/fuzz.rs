//! Parsers of bytes from outside, given bytes of every kind: those that were kept because they once were interesting,
//! random ones, and encodings that were right before something was done to them.

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;
use std::fmt::Write;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::PathBuf;
use std::sync::Once;
use std::time::{Duration, Instant};

use proptest::collection::vec;
use proptest::prelude::*;
use proptest::sample::{Index, select};
use proptest::test_runner::{Config, TestCaseError, TestError, TestRunner};

use crate::seed::is_soak;

/// How long each parser is tried in the long form.
const LONG: Duration = Duration::from_secs(60);
/// Of random bytes.
const LONGEST: usize = 400;

/// Try a parser. Each input is given to `parse`, which must not panic nor ask for more than `most` bytes of memory (of
/// an input of that length, over the whole call); of what it returns, `holds` says whether it is right.
///
/// `valid` are encodings that are parsed, and are damaged in all ways. First come the files in `tests/corpus/PARSER`,
/// then some hundreds of inputs, or with AVIDFS_SOAK=1 as many as there is time for in a minute. An input that fails is
/// made as small as possible, and printed with the command that has it tried for ever.
pub fn fuzz<T>(
    parser: &str,
    valid: &[Vec<u8>],
    most: impl Fn(usize) -> usize,
    parse: impl Fn(&[u8]) -> Option<T>,
    holds: impl Fn(T, &[u8]),
) {
    let attempt = |bytes: &[u8]| {
        let (parsed, asked) = allocated(|| parse(bytes));
        let most = most(bytes.len());
        assert!(asked <= most, "it asked for {asked} bytes of memory, {most} are allowed");
        parsed.map(|parsed| holds(parsed, bytes)).is_some()
    };
    let check = |bytes: &[u8]| quietly(|| attempt(bytes));
    for bytes in valid {
        let is_parsed = check(bytes).unwrap_or_else(|why| fail(parser, &why, bytes));
        assert!(is_parsed, "{parser}: what is to be damaged is damaged already: {}", escaped(bytes));
    }
    for (name, bytes) in corpus(parser) {
        check(&bytes).unwrap_or_else(|why| fail(parser, &format!("{name} of the corpus: {why}"), &bytes));
    }
    let config = Config { failure_persistence: None, max_shrink_iters: 20_000, ..Config::default() };
    let end = Instant::now() + LONG;
    loop {
        let mut runner = TestRunner::new(config.clone());
        let tried =
            runner.run(&inputs(valid.to_vec()), |bytes| check(&bytes).map(drop).map_err(TestCaseError::fail));
        match tried {
            Err(TestError::Fail(_, bytes)) => {
                let bytes = smallest(bytes, |bytes| check(bytes).is_err());
                let why = check(&bytes).expect_err("it fails each time");
                fail(parser, &why, &bytes)
            }
            Err(abort) => panic!("{parser}: {abort}"),
            Ok(()) if is_soak() && Instant::now() < end => {}
            Ok(()) => return,
        }
    }
}

/// What is left when no byte more can be taken away.
fn smallest(mut bytes: Vec<u8>, fails: impl Fn(&[u8]) -> bool) -> Vec<u8> {
    let mut at = 0;
    while at < bytes.len() {
        let taken = bytes.remove(at);
        if !fails(&bytes) {
            bytes.insert(at, taken);
            at += 1;
        }
    }
    bytes
}

fn fail(parser: &str, why: &str, bytes: &[u8]) -> ! {
    let shown = escaped(bytes);
    panic!(
        "{parser}: {why}\n{} bytes: b\"{shown}\"\n\
         to have them tried for ever: mkdir -p tests/corpus/{parser} && printf '%b' '{}' >tests/corpus/{parser}/NAME",
        bytes.len(),
        octal(bytes)
    );
}

fn escaped(bytes: &[u8]) -> String {
    bytes.escape_ascii().to_string()
}

/// As printf(1) of every shell reads it.
fn octal(bytes: &[u8]) -> String {
    bytes.iter().fold(String::new(), |mut text, byte| {
        write!(text, "\\0{byte:03o}").expect("a string takes everything");
        text
    })
}

/// What is kept of a parser's interesting inputs, by name.
fn corpus(parser: &str) -> Vec<(String, Vec<u8>)> {
    let folder: PathBuf = [env!("CARGO_MANIFEST_DIR"), "corpus", parser].iter().collect();
    let entries = std::fs::read_dir(&folder);
    let entries = entries.unwrap_or_else(|error| panic!("{}: {error}", folder.display()));
    let mut paths: Vec<PathBuf> = entries.map(|entry| entry.unwrap().path()).collect();
    paths.sort();
    assert!(!paths.is_empty(), "{} is empty", folder.display());
    paths.iter().map(|path| (path.display().to_string(), std::fs::read(path).unwrap())).collect()
}

/// Something done to an encoding.
#[derive(Clone, Debug)]
enum Damage {
    Flip(Index, u8),
    Set(Index, u8),
    Insert(Index, Vec<u8>),
    Remove(Index, usize),
    CutAt(Index),
    /// A number of so many bytes, at some place; most of them are lengths.
    Number(Index, usize, Extreme),
    /// So many bytes of another encoding, or of this one.
    Splice(Index, Index, Index, usize),
}

#[derive(Clone, Copy, Debug)]
enum Extreme {
    Least,
    One,
    /// The length of what follows, more or less.
    Rest(i64),
    Half,
    Most,
}

fn damage() -> impl Strategy<Value = Damage> {
    let extreme = prop_oneof![
        Just(Extreme::Least),
        Just(Extreme::One),
        (-9i64..9).prop_map(Extreme::Rest),
        Just(Extreme::Half),
        Just(Extreme::Most)
    ];
    let at = any::<Index>;
    prop_oneof![
        (at(), 0u8..8).prop_map(|(at, bit)| Damage::Flip(at, bit)),
        (at(), telling()).prop_map(|(at, byte)| Damage::Set(at, byte)),
        (at(), vec(telling(), 1..12)).prop_map(|(at, bytes)| Damage::Insert(at, bytes)),
        (at(), 1usize..40).prop_map(|(at, length)| Damage::Remove(at, length)),
        at().prop_map(Damage::CutAt),
        (at(), select(&[1usize, 2, 4, 8][..]), extreme)
            .prop_map(|(at, width, extreme)| Damage::Number(at, width, extreme)),
        (at(), at(), at(), 1usize..80)
            .prop_map(|(at, which, from, length)| Damage::Splice(at, which, from, length)),
    ]
}

/// Any byte, and often those that mean something in texts.
fn telling() -> impl Strategy<Value = u8> {
    prop_oneof![any::<u8>(), select(&b"\0\xff{}[]:,-+&*!|>\"'\\\n\t %#~0919aefuN."[..])]
}

fn inputs(valid: Vec<Vec<u8>>) -> impl Strategy<Value = Vec<u8>> {
    let damaged = (any::<Index>(), vec(damage(), 1..6)).prop_map(move |(which, damages)| {
        let mut bytes = which.get(&valid).clone();
        damages.iter().for_each(|damage| inflict(damage, &mut bytes, &valid));
        bytes
    });
    prop_oneof![1 => vec(any::<u8>(), 0..LONGEST), 1 => vec(telling(), 0..LONGEST), 8 => damaged]
}

fn inflict(damage: &Damage, bytes: &mut Vec<u8>, valid: &[Vec<u8>]) {
    let length = bytes.len();
    let within = |at: &Index| at.index(length + 1);
    match damage {
        Damage::Flip(at, bit) => {
            bytes.iter_mut().skip(within(at)).take(1).for_each(|byte| *byte ^= 1 << bit);
        }
        Damage::Set(at, value) => bytes.iter_mut().skip(within(at)).take(1).for_each(|byte| *byte = *value),
        Damage::Insert(at, more) => drop(bytes.splice(within(at)..within(at), more.iter().copied())),
        Damage::Remove(at, count) => drop(bytes.drain(within(at)..length.min(within(at) + count))),
        Damage::CutAt(at) => bytes.truncate(within(at)),
        Damage::Number(at, width, extreme) => {
            let rest = length - within(at);
            let number = match extreme {
                Extreme::Least => 0,
                Extreme::One => 1,
                Extreme::Rest(more) => (rest as i64 - *width as i64 + more) as u64,
                Extreme::Half => 1 << (8 * width - 1),
                Extreme::Most => u64::MAX,
            };
            let number = &number.to_le_bytes()[..*width];
            bytes.iter_mut().skip(within(at)).zip(number).for_each(|(byte, value)| *byte = *value);
        }
        Damage::Splice(at, which, from, count) => {
            let other = which.get(valid);
            let from = from.index(other.len() + 1);
            let more = &other[from..other.len().min(from + count)];
            drop(bytes.splice(within(at)..within(at), more.iter().copied()));
        }
    }
}

thread_local! {
    /// Bytes of memory this thread ever asked for.
    static ASKED: Cell<usize> = const { Cell::new(0) };
    static IS_QUIET: Cell<bool> = const { Cell::new(false) };
    /// What a panic said meanwhile.
    static SAID: Cell<Option<String>> = const { Cell::new(None) };
}

/// What `work` asked for, given back or not.
fn allocated<T>(work: impl FnOnce() -> T) -> (T, usize) {
    let before = ASKED.get();
    let done = work();
    (done, ASKED.get() - before)
}

/// Do something that may panic, without a word on the standard error: its many attempts are shown as one.
fn quietly<T>(work: impl FnOnce() -> T) -> Result<T, String> {
    static HOOK: Once = Once::new();
    HOOK.call_once(|| {
        let usual = std::panic::take_hook();
        std::panic::set_hook(Box::new(move |panic| match IS_QUIET.get() {
            true => SAID.set(Some(panic.to_string())),
            false => usual(panic),
        }));
    });
    IS_QUIET.set(true);
    let done = catch_unwind(AssertUnwindSafe(work));
    IS_QUIET.set(false);
    done.map_err(|_| SAID.take().unwrap_or_default())
}

/// The system's allocator, which counts what each thread asks for.
struct Counting;

#[global_allocator]
static ALLOCATOR: Counting = Counting;

fn count(bytes: usize) {
    // While a thread ends its counter may be gone, and nobody asks any more.
    let _ = ASKED.try_with(|asked| asked.set(asked.get().wrapping_add(bytes)));
}

// SAFETY: every call is handed to the system's allocator as it is.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        count(layout.size());
        // SAFETY: the caller's promises are those that are asked for.
        unsafe { System.alloc(layout) }
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        count(layout.size());
        // SAFETY: the caller's promises are those that are asked for.
        unsafe { System.alloc_zeroed(layout) }
    }

    unsafe fn realloc(&self, at: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        count(size.saturating_sub(layout.size()));
        // SAFETY: the caller's promises are those that are asked for.
        unsafe { System.realloc(at, layout, size) }
    }

    unsafe fn dealloc(&self, at: *mut u8, layout: Layout) {
        // SAFETY: the caller's promises are those that are asked for.
        unsafe { System.dealloc(at, layout) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A parser of a length and so many bytes, with one mistake.
    fn said_of(mistake: impl Fn(&[u8], usize)) -> String {
        let parse = |bytes: &[u8]| {
            let (length, rest) = bytes.split_first()?;
            mistake(rest, usize::from(*length));
            rest.get(..usize::from(*length)).filter(|taken| taken.len() == rest.len()).map(<[u8]>::to_vec)
        };
        let tried = catch_unwind(AssertUnwindSafe(|| {
            fuzz(
                "itself",
                &[b"\x03abc".to_vec()],
                |length| 4 * length,
                parse,
                |value, bytes| {
                    assert_eq!(value, bytes[1..]);
                },
            );
        }));
        tried
            .err()
            .map(|panic| panic.downcast_ref::<String>().expect("a sentence").clone())
            .unwrap_or_default()
    }

    #[test]
    fn a_parser_without_mistakes_passes() {
        assert_eq!(said_of(|_, _| ()), "");
    }

    #[test]
    fn a_parser_that_panics_fails_with_the_smallest_input_that_makes_it() {
        let said = said_of(|rest, length| assert!(length <= rest.len() || length < 200, "so long"));
        assert!(said.contains("so long") && said.contains("\n1 bytes: b\""), "{said}");
        assert!(said.contains("printf '%b' '\\03") && said.contains("' >tests/corpus/itself/NAME"), "{said}");
    }

    #[test]
    fn a_parser_that_believes_a_length_before_it_has_the_bytes_fails() {
        let said = said_of(|_, length| drop(Vec::<u64>::with_capacity(length)));
        assert!(said.contains("bytes of memory"), "{said}");
    }
}
