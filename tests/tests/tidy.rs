//! Hygiene as a test: who may import whom, and what no source may contain.

#![allow(clippy::unwrap_used)]

use std::fs;
use std::path::{Path, PathBuf};

/// The files that know an outside technology, by the beginning of their path. Everyone else asks them.
const KNOWS: &[(&str, &[&str])] = &[
    ("io_uring", &["fs/src/kernel/ring"]),
    ("rusqlite", &["fs/src/metadata/sqlite"]),
    ("hyper", &["fs/src/transport/http", "fs/src/transport/verbs", "shardd/src/", "credentials/src/secured"]),
    ("hyper_util", &["fs/src/transport/http", "shardd/src/", "credentials/src/secured"]),
    ("axum", &["shardd/src/", "fs/src/transport/in_process", "fs/src/metrics"]),
    ("rustls", &["credentials/src/"]),
    ("webpki", &["credentials/src/tls"]),
    ("rcgen", &["credentials/src/pki"]),
    ("tokio_rustls", &["credentials/src/secured", "shardd/src/server"]),
    (
        "shardd",
        &[
            "fs/src/transport/in_process",
            "fs/src/main.rs",
            "fs/src/embedded",
            "fs/src/metrics",
            "shardd/src/main.rs",
        ],
    ),
];

/// What common is free of: it has values and pure functions only.
const NOT_IN_COMMON: &[&str] =
    &["tokio", "std::net", "std::fs", "std::time::SystemTime", "std::time::Instant", "hyper"];

/// The modules of fs, bottom first. A module may use those above it in this list and those of its own line.
const LAYERS: &[&[&str]] = &[
    &["error", "inode", "stages"],
    &["begun", "blocking"],
    &["acl", "transport", "metadata", "buffers", "host", "kernel", "roster", "busy", "evidence"],
    &["authority"],
    &["pool", "cache", "placement"],
    &["stripe"],
    &["open_file", "journal", "lease", "objects"],
    &["volume"],
    &["fuse"],
    &[
        "access", "cli", "config", "state", "control", "mount", "daemon", "umount", "helper", "recover",
        "report", "embedded", "metrics", "bench", "asking",
    ],
    &["opening"],
    &["commands"],
];

/// A source file with tests, comments and texts taken out.
struct Source {
    /// From the project's folder.
    name: String,
    lines: Vec<(usize, String)>,
}

fn project() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap().to_owned()
}

fn sources(folders: &[&str]) -> Vec<Source> {
    let mut paths = Vec::new();
    folders.iter().for_each(|folder| collect(&project().join(folder), "rs", &mut paths));
    paths.sort();
    assert!(paths.len() > 10, "the sources are where they were");
    let tests: Vec<PathBuf> = paths.iter().flat_map(|path| test_modules(path)).collect();
    let is_test =
        |path: &Path| tests.iter().any(|test| path.starts_with(test) || path == test.with_extension("rs"));
    paths.iter().filter(|path| !is_test(path)).map(|path| source(path)).collect()
}

/// The modules that a file declares for tests alone, as the folders they would be: `#[cfg(test)] mod x;`.
fn test_modules(path: &Path) -> Vec<PathBuf> {
    let text = fs::read_to_string(path).unwrap();
    let stem = path.file_stem().unwrap();
    let is_root = ["lib", "main", "mod"].iter().any(|name| stem == *name);
    let folder = if is_root { path.parent().unwrap().to_owned() } else { path.with_extension("") };
    let declared = text.split("#[cfg(test)]\n").skip(1).filter_map(|rest| {
        let (name, _) = rest.lines().next()?.rsplit_once("mod ")?.1.split_once(';')?;
        Some(name.to_owned())
    });
    declared.map(|name| folder.join(name)).collect()
}

fn collect(folder: &Path, extension: &str, found: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
        let path = entry.path();
        if path.is_dir() {
            collect(&path, extension, found);
        } else if path.extension().is_some_and(|found| found == extension) {
            found.push(path);
        }
    }
}

fn source(path: &Path) -> Source {
    let text = fs::read_to_string(path).unwrap();
    let name = path.strip_prefix(project()).unwrap().to_string_lossy().into_owned();
    let code = |line: &str| line.split("//").next().unwrap_or_default().trim().to_owned();
    let lines = text.lines().enumerate().map(|(number, line)| (number + 1, code(line))).collect();
    Source { name, lines: without_tests(lines) }
}

/// Leave out what `#[cfg(test)]` stands before: up to the end of its block, or of its statement.
fn without_tests(lines: Vec<(usize, String)>) -> Vec<(usize, String)> {
    let mut kept = Vec::new();
    let mut lines = lines.into_iter();
    while let Some((number, line)) = lines.next() {
        if line != "#[cfg(test)]" {
            kept.push((number, line));
            continue;
        }
        let mut depth = 0i32;
        for (_, line) in lines.by_ref() {
            let count = |brace: char| line.matches(brace).count() as i32;
            depth += count('{') - count('}');
            if depth == 0 && (line.ends_with('}') || line.ends_with(';')) {
                break;
            }
        }
    }
    kept
}

/// Whether a line names a crate or module at the head of a path: `use x::`, `x::y`, `use {x, ..}`.
fn names(line: &str, module: &str) -> bool {
    let is_word = |c: char| c.is_alphanumeric() || c == '_';
    line.match_indices(module).any(|(at, _)| {
        let before = line[..at].chars().next_back();
        let after = &line[at + module.len()..];
        let begins = before.is_none_or(|c| !is_word(c) && c != ':' && c != '.' && c != '"');
        begins && (after.starts_with("::") || (line.starts_with("use ") && after.starts_with(';')))
    })
}

fn assert_none(wrong: Vec<String>) {
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn one_file_knows_each_outside_technology() {
    let mut wrong = Vec::new();
    for source in sources(&["common/src", "credentials/src", "shardd/src", "fs/src"]) {
        for (technology, places) in KNOWS {
            if places.iter().any(|place| source.name.starts_with(place)) {
                continue;
            }
            let uses = source.lines.iter().filter(|(_, line)| names(line, technology));
            wrong.extend(
                uses.map(|(number, line)| format!("{}:{number} knows {technology}: {line}", source.name)),
            );
        }
    }
    assert_none(wrong);
}

#[test]
fn common_has_no_network_no_disk_and_no_clock() {
    let mut wrong = Vec::new();
    for source in sources(&["common/src"]) {
        for (number, line) in &source.lines {
            let found =
                NOT_IN_COMMON.iter().filter(|name| names(line, name) || line.contains(&format!("{name}::")));
            wrong.extend(found.map(|name| format!("{}:{number} knows {name}: {line}", source.name)));
        }
    }
    assert_none(wrong);
}

#[test]
fn what_node_and_mount_share_knows_neither() {
    let mut wrong = Vec::new();
    for source in sources(&["common/src", "credentials/src", "shardd/src"]) {
        let uses = source.lines.iter().filter(|(_, line)| names(line, "avidfs"));
        wrong.extend(uses.map(|(number, line)| format!("{}:{number}: {line}", source.name)));
    }
    assert_none(wrong);
}

/// The module of fs that a file belongs to; `None` for lib.rs and main.rs, which name all of them.
fn module_of(name: &str) -> Option<&str> {
    let below = name.strip_prefix("fs/src/")?;
    let module = below.split('/').next()?.trim_end_matches(".rs");
    (!["lib", "main"].contains(&module)).then_some(module)
}

fn layer(module: &str) -> Option<usize> {
    LAYERS.iter().position(|layer| layer.contains(&module))
}

/// Modules of this crate that a line names: `crate::x`, `crate::{x, y}`.
fn used_modules(line: &str) -> Vec<String> {
    let mut used = Vec::new();
    for (at, _) in line.match_indices("crate::") {
        let rest = &line[at + "crate::".len()..];
        let word = |text: &str| -> String {
            text.chars().take_while(|c| c.is_alphanumeric() || *c == '_').collect()
        };
        match rest.strip_prefix('{') {
            Some(list) => used.extend(list.split(',').map(|item| word(item.trim()))),
            None => used.push(word(rest)),
        }
    }
    used.retain(|module| !module.is_empty() && module.chars().next().is_some_and(char::is_lowercase));
    used
}

#[test]
fn no_layer_of_the_mount_calls_upwards() {
    let mut wrong = Vec::new();
    for source in sources(&["fs/src"]) {
        let Some(module) = module_of(&source.name) else { continue };
        let Some(own) = layer(module) else {
            wrong.push(format!("{}: say in {} where the module {module} stands", source.name, file!()));
            continue;
        };
        for (number, line) in &source.lines {
            for used in used_modules(line) {
                if layer(&used).is_some_and(|layer| layer > own) {
                    wrong.push(format!("{}:{number}: {module} calls upwards to {used}: {line}", source.name));
                }
            }
        }
    }
    assert_none(wrong);
}

#[test]
fn nothing_unwraps_outside_tests() {
    let mut wrong = Vec::new();
    for source in sources(&["common/src", "credentials/src", "shardd/src", "fs/src"]) {
        let unwraps = source
            .lines
            .iter()
            .filter(|(_, line)| line.contains(".unwrap()") || line.contains("panic!(\"{e"));
        wrong.extend(unwraps.map(|(number, line)| format!("{}:{number}: {line}", source.name)));
    }
    assert_none(wrong);
}

#[test]
fn every_module_begins_with_what_it_is_for() {
    let mut paths = Vec::new();
    ["common/src", "credentials/src", "shardd/src", "fs/src", "tests/src", "tests/tests"]
        .iter()
        .for_each(|folder| collect(&project().join(folder), "rs", &mut paths));
    let silent = paths.iter().filter(|path| {
        let name = path.file_name().unwrap();
        name != "tests.rs" && !fs::read_to_string(path).unwrap().starts_with("//!")
    });
    assert_none(silent.map(|path| format!("{}: no sentence at its head", path.display())).collect());
}

#[test]
fn every_script_stops_at_the_first_error() {
    let mut paths = Vec::new();
    collect(&project().join("scripts"), "sh", &mut paths);
    let lenient = paths.iter().filter(|path| {
        let text = fs::read_to_string(path).unwrap();
        !text.starts_with("#!") || !text.lines().any(|line| line.trim() == "set -euo pipefail")
    });
    assert_none(lenient.map(|path| format!("{}: no set -euo pipefail", path.display())).collect());
}

/// What a text names as `file::test`.
fn named_tests(text: &str) -> Vec<(&str, &str)> {
    let is_name = |name: &str| {
        !name.is_empty() && name.chars().all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '_')
    };
    let spans = text.split('`').skip(1).step_by(2);
    let named = spans.filter_map(|span| span.split_once("::"));
    named.filter(|(file, test)| is_name(file) && is_name(test)).collect()
}

#[test]
fn every_test_that_a_document_names_exists() {
    let mut documents = vec![project().join("README.md")];
    collect(&project().join("docs"), "md", &mut documents);
    let mut wrong = Vec::new();
    let mut count = 0;
    for document in documents {
        let text = fs::read_to_string(&document).unwrap();
        for (file, test) in named_tests(&text) {
            count += 1;
            let sources = ["tests/tests/posix", "tests/tests"].map(|folder| project().join(folder));
            let mut sources = sources.iter().map(|folder| folder.join(file).with_extension("rs"));
            let is_in = |path: PathBuf| {
                fs::read_to_string(path).is_ok_and(|source| source.contains(&format!("fn {test}(")))
            };
            if !sources.any(is_in) {
                wrong.push(format!("{}: there is no test {file}::{test}", document.display()));
            }
        }
    }
    assert!(count > 100, "docs/posix.md names its tests as it did");
    assert_none(wrong);
}

#[test]
fn the_rules_see_what_breaks_them() {
    assert!(names("use fuser::Session;", "fuser") && names("let x = fuser::mount();", "fuser"));
    assert!(
        names("use fuser;", "fuser")
            && !names("let confuser = 1;", "fuser")
            && !names("a::fuser::b", "fuser")
    );
    assert!(!names("use crate::hyper_thing;", "hyper") && !names("hyper_util::rt", "hyper"));
    assert_eq!(used_modules("use crate::{pool, stripe::Stripe};"), ["pool", "stripe"]);
    assert_eq!(used_modules("let a: crate::volume::Volume = 1;"), ["volume"]);
    assert_eq!(module_of("fs/src/metadata/sqlite/schema.rs"), Some("metadata"));
    assert_eq!(named_tests("`a::b_1` and `A::b`, a::c, `x` `d::e()`"), [("a", "b_1")]);
    let text = "a\n#[cfg(test)]\nfn b() {\nc {}\n}\nd\n#[cfg(test)]\nmod tests;\ne";
    let lines = text.lines().enumerate().map(|(number, line)| (number, line.to_owned())).collect();
    let kept: Vec<String> = without_tests(lines).into_iter().map(|(_, line)| line).collect();
    assert_eq!(kept, ["a", "d", "e"]);
}
