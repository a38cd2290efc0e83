//! `avidfs fsck` as a person runs it, with its exit code and what it says as data.

use std::path::Path;
use std::process::Output;

use serde_json::Value;

use crate::mount::said;
use crate::process;

/// What a check said.
#[derive(Clone, Debug)]
pub struct Checked {
    /// The exit code.
    pub code: i32,
    /// What `--json` printed.
    pub report: Value,
}

impl Checked {
    /// The problems.
    pub fn problems(&self) -> &[Value] {
        self.report["problems"].as_array().expect("a report has problems")
    }

    /// The kinds of the problems, in order, each once.
    pub fn kinds(&self) -> Vec<&str> {
        let mut kinds: Vec<&str> =
            self.problems().iter().map(|problem| problem["kind"].as_str().expect("a kind")).collect();
        kinds.sort_unstable();
        kinds.dedup();
        kinds
    }

    /// A number of the report.
    pub fn number(&self, name: &str) -> u64 {
        self.report[name].as_u64().unwrap_or_else(|| panic!("{name} is a number: {}", self.report))
    }

    /// Fail the test unless nothing is wrong.
    #[track_caller]
    pub fn is_clean(&self) -> &Checked {
        assert!(self.code == 0 && self.problems().is_empty(), "exit code {}: {:#}", self.code, self.report);
        self
    }
}

/// `avidfs fsck WORDS --json`.
#[track_caller]
pub fn fsck(words: &[&str]) -> Checked {
    let output = run(&[words, &["--json"]].concat());
    let text = said(&output);
    let report = serde_json::from_slice(&output.stdout).unwrap_or_else(|error| panic!("{error}: {text}"));
    Checked { code: output.status.code().expect("it is not killed"), report }
}

/// `avidfs fsck MOUNTPOINT WORDS --json`.
#[track_caller]
pub fn fsck_mount(mountpoint: &Path, words: &[&str]) -> Checked {
    fsck(&[&[mountpoint.to_str().expect("a path of letters")], words].concat())
}

/// `avidfs fsck --state DIR WORDS --json`.
#[track_caller]
pub fn fsck_folder(state: &Path, words: &[&str]) -> Checked {
    fsck(&[&["--state", state.to_str().expect("a path of letters")], words].concat())
}

/// `avidfs fsck WORDS`, whatever comes of it.
pub fn run(words: &[&str]) -> Output {
    process::output(process::command("avidfs").arg("fsck").args(words))
}
