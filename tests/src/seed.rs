//! Seeds: every random test says which one it has and how to repeat it.

/// The seed of this test: AVIDFS_SEED, or a new one. Prints the command that repeats the test.
pub fn seed() -> u64 {
    let seed = match std::env::var("AVIDFS_SEED") {
        Ok(text) => text.parse().unwrap_or_else(|_| panic!("AVIDFS_SEED={text} is not a number")),
        Err(_) => fresh(),
    };
    announce(seed);
    seed
}

/// Small enough to be typed.
fn fresh() -> u64 {
    use std::hash::{BuildHasher, Hasher, RandomState};
    RandomState::new().build_hasher().finish() >> 32
}

/// Say which seed is used; the test runner shows it when the test fails.
pub fn announce(seed: u64) {
    let thread = std::thread::current();
    let test = thread.name().unwrap_or("TEST");
    let package = std::env::var("CARGO_PKG_NAME").unwrap_or_else(|_| "avidfs-tests".to_owned());
    eprintln!("seed {seed}; again: AVIDFS_SEED={seed} cargo nextest run -p {package} -E 'test(={test})'");
}

/// Whether AVIDFS_SEED names one seed to repeat.
pub fn is_given() -> bool {
    std::env::var_os("AVIDFS_SEED").is_some()
}

/// How many rounds: `short`, or `long` with AVIDFS_SOAK=1.
pub fn rounds(short: u64, long: u64) -> u64 {
    if is_soak() { long } else { short }
}

/// Whether the tests run in their long form.
pub fn is_soak() -> bool {
    std::env::var_os("AVIDFS_SOAK").is_some_and(|value| value == "1")
}

/// Pseudo-random numbers, the same for the same seed on every machine and with every version of every crate.
#[derive(Clone)]
pub struct Dice(u64);

impl Dice {
    /// Dice that begin with this seed.
    pub fn new(seed: u64) -> Dice {
        Dice(seed)
    }

    /// Any number (splitmix64).
    pub fn roll(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        mixed(self.0)
    }

    /// A number below `bound`, which is not 0.
    pub fn below(&mut self, bound: u64) -> u64 {
        self.roll() % bound
    }

    /// True `percent` times of a hundred.
    pub fn chance(&mut self, percent: u64) -> bool {
        self.below(100) < percent
    }

    /// One of them.
    pub fn pick<'a, T>(&mut self, from: &'a [T]) -> &'a T {
        &from[self.below(from.len() as u64) as usize]
    }
}

/// The finaliser of splitmix64: every bit depends on every bit.
pub fn mixed(value: u64) -> u64 {
    let value = (value ^ (value >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let value = (value ^ (value >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    value ^ (value >> 31)
}
