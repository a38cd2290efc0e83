//! What `avidfs fsck` prints: one line for each problem, then what was looked at, and the verdict last.

use std::fmt::Write;

use super::{plural, size};
use crate::volume::{FsckReport, Problem};

/// `avidfs fsck`.
pub fn fsck(report: &FsckReport) -> String {
    let mut text = String::new();
    for problem in &report.problems {
        let _ = writeln!(text, "{}", line(problem));
    }
    let unlisted = report.found.saturating_sub(report.problems.len() as u64);
    if unlisted > 0 {
        let _ = writeln!(text, "and {} that are not listed", plural(unlisted as usize, "problem"));
    }
    let _ = writeln!(
        text,
        "volume {}: {}, {}, {}",
        report.volume,
        plural(report.inodes as usize, "inode"),
        plural(report.objects as usize, "object"),
        plural(report.fragments as usize, "fragment"),
    );
    if report.verified > 0 {
        let _ = writeln!(text, "{} read and verified", plural(report.verified as usize, "fragment"));
    }
    let _ = writeln!(text, "{}", report.journal);
    asides(report).into_iter().for_each(|aside| {
        let _ = writeln!(text, "{aside}");
    });
    let _ = writeln!(text, "{}", verdict(report));
    text
}

fn line(problem: &Problem) -> String {
    let mut parts = Vec::new();
    if !problem.paths.is_empty() {
        parts.push(problem.paths.join(", "));
    }
    if let Some(key) = &problem.object {
        parts.push(format!("object {key}"));
    }
    parts.push(problem.what.clone());
    let repaired = if problem.repaired { " (repaired)" } else { "" };
    format!("{}{repaired}", parts.join(": "))
}

/// What is no problem, and worth knowing.
fn asides(report: &FsckReport) -> Vec<String> {
    let fragments = |count: u64| plural(count as usize, "fragment");
    let mut asides: Vec<String> = report.silent.iter().map(|node| format!("no answer from {node}")).collect();
    if report.unseen_fragments > 0 {
        asides.push(format!("{} could not be looked at", fragments(report.unseen_fragments)));
    }
    if report.awaited_fragments > 0 {
        let count = fragments(report.awaited_fragments);
        asides.push(format!("{count} not stored yet, and made anew when their node takes them"));
    }
    if report.spare_fragments > 0 {
        asides.push(format!("{} more than needed", fragments(report.spare_fragments)));
    }
    if report.garbage_objects > 0 {
        let objects = plural(report.garbage_objects as usize, "object");
        let bytes = size(report.garbage_bytes);
        asides.push(format!("{objects} that nobody refers to, {bytes}: avidfs gc deletes them"));
    }
    if report.remount {
        asides.push(
            "unmount the volume and mount it again: the kernel may remember names that were mended".into(),
        );
    }
    asides
}

fn verdict(report: &FsckReport) -> String {
    let problems = |count: u64| plural(count as usize, "problem");
    match (report.found, report.left) {
        (0, _) => "clean".to_owned(),
        (found, 0) => format!("{} found, all repaired: clean", problems(found)),
        (found, left) if report.repaired == 0 => match found == left {
            true => format!("{} found", problems(found)),
            false => format!("{} found, {left} left", problems(found)),
        },
        (found, left) => format!("{} found, {} repaired, {left} left", problems(found), report.repaired),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn missing() -> Problem {
        Problem {
            kind: "missing".into(),
            paths: vec!["/a".into(), "/b/c".into()],
            object: Some("00000001-0000000000000002".into()),
            fragment: Some(3),
            node: Some("http://10.0.0.3:7001".into()),
            what: "fragment 3 is missing on http://10.0.0.3:7001".into(),
            repaired: false,
        }
    }

    fn report(found: u64, left: u64) -> FsckReport {
        let problems = vec![Problem { repaired: left == 0, ..missing() }];
        FsckReport {
            volume: "home".into(),
            found,
            left,
            repaired: found - left,
            problems,
            ..FsckReport::default()
        }
    }

    #[test]
    fn a_problem_is_one_line_with_path_object_and_node() {
        let text = fsck(&report(1, 1));
        let line =
            "/a, /b/c: object 00000001-0000000000000002: fragment 3 is missing on http://10.0.0.3:7001\n";
        assert!(text.starts_with(line), "{text}");
        assert!(text.ends_with("\n1 problem found\n"), "{text}");
    }

    #[test]
    fn the_verdict_says_what_was_repaired_and_what_is_left() {
        assert!(fsck(&report(1, 0)).contains("7001 (repaired)\n"));
        assert!(fsck(&report(1, 0)).ends_with("1 problem found, all repaired: clean\n"));
        assert!(fsck(&report(5, 2)).ends_with("5 problems found, 3 repaired, 2 left\n"));
        assert!(fsck(&report(5, 2)).contains("and 4 problems that are not listed\n"));
        let clean =
            FsckReport { silent: vec!["http://10.0.0.3:7001 (refused)".into()], ..FsckReport::default() };
        assert!(fsck(&clean).contains("no answer from http://10.0.0.3:7001 (refused)\n"));
        assert!(fsck(&clean).ends_with("clean\n"));
    }
}
