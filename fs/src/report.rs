//! What `status` and `info` print for people. The values come from elsewhere; here they become lines.

mod fsck;
mod objects;

use std::collections::BTreeSet;
use std::fmt::Write;
use std::path::Path;
use std::time::{SystemTime, UNIX_EPOCH};

use common::code::Code;

use crate::bench::Figure;
use crate::evidence::{Case, Verdict};
use crate::journal::entry::Signed;
use crate::journal::key::VolumeKey;
use crate::metadata::Usage;
use crate::mount::{Survey, can_store};
use crate::volume::{
    FileReport, FragmentReport, GarbageReport, NodeReport, ObjectReport, RebalanceReport, RestoreReport,
    SnapshotReport, VersionReport, VolumeStatus,
};

pub use fsck::fsck;
pub use objects::{deleted, got, keys, stored, transfer_progress};

/// `avidfs status` of a mount.
pub fn status(mountpoint: &str, pid: u32, status: &VolumeStatus) -> String {
    let mode = if status.read_only || status.fenced { "read-only" } else { "read-write" };
    let mut lines = vec![
        (
            "volume",
            format!("{}, code {}, {}, {mode}, epoch {}", status.name, status.code, status.hash, status.epoch),
        ),
        ("identity", status.volume.clone()),
        ("mounted", format!("{mountpoint}, by process {pid}")),
        (
            "room",
            format!("{} free of {}", size(status.space.available_bytes), size(status.space.total_bytes)),
        ),
        (
            "content",
            format!(
                "{}, {} in {}, {} of it in use",
                plural(status.inodes as usize, "inode"),
                size(status.object_bytes),
                plural(status.objects as usize, "object"),
                size(status.live_bytes)
            ),
        ),
        ("nodes", nodes_line(status)),
    ];
    lines.extend(gone(status).map(|text| ("gone", text)));
    lines.extend(lease(status).map(|text| ("lease", text)));
    lines.extend(journal(status).map(|text| ("journal", text)));
    lines.extend(rollback(status).map(|text| ("caution", text)));
    lines.extend(pending(status).map(|text| ("pending", text)));
    lines.extend(liars(status).map(|text| ("lies", text)));
    let mut text = aligned(&lines);
    text.push_str(&node_table(&status.nodes));
    text
}

/// `avidfs gc`.
pub fn garbage(found: &GarbageReport, dry_run: bool) -> String {
    let objects = plural(found.objects as usize, "object");
    let fragments = plural(found.fragments as usize, "fragment");
    let mut text = format!("{objects} that nobody refers to, {} in {fragments}", size(found.bytes));
    match (dry_run, found.objects - found.deleted) {
        (true, _) => text.push_str("; nothing was deleted\n"),
        (false, 0) => text.push_str("; all deleted\n"),
        (false, left) => text.push_str(&format!("; {left} could not be deleted everywhere yet\n")),
    }
    let compaction = &found.compaction;
    if compaction.extents > 0 {
        let pieces = plural(compaction.extents as usize, "piece");
        let bytes = size(compaction.bytes);
        match dry_run {
            true => text.push_str(&format!("{pieces} of files lie scattered, {bytes}\n")),
            false => {
                let (moved, objects) = (compaction.moved, plural(compaction.objects as usize, "object"));
                text.push_str(&format!(
                    "{pieces} of files lay scattered, {bytes}: {moved} are in {objects} now\n"
                ));
            }
        }
    }
    if !found.silent.is_empty() {
        text.push_str(&format!("no answer from {}\n", found.silent.join(", ")));
    }
    text
}

/// `avidfs rebalance`, before anything has arrived.
pub fn rebalance(report: &RebalanceReport, dry_run: bool) -> String {
    if report.objects == 0 {
        return "everything is placed by the current list of nodes\n".to_owned();
    }
    let fragments = |count: u64| plural(count as usize, "fragment");
    let (objects, bytes) = (plural(report.objects as usize, "object"), size(report.bytes));
    let (to_go, to_make) = if dry_run { ("would go", "would be made") } else { ("go", "are made") };
    format!(
        "{objects}, {bytes}, placed by earlier lists of nodes: {} {to_go} to another node, {} {to_make} anew\n",
        fragments(report.moved),
        fragments(report.made),
    )
}

/// One line of `avidfs bench`.
pub fn figure(figure: &Figure) -> String {
    let times = figure.p50_ms.zip(figure.p99_ms);
    let times =
        times.map_or_else(String::new, |(p50, p99)| format!("   p50 {p50:>8.3} ms   p99 {p99:>8.3} ms"));
    format!("{:<38} {:>9.0} {:<4}{times}", figure.name, figure.value, figure.unit).trim_end().to_owned()
        + "\n"
}

/// `avidfs snapshot list`.
pub fn snapshots(snapshots: &[SnapshotReport]) -> String {
    if snapshots.is_empty() {
        return "no snapshots\n".to_owned();
    }
    let rows = snapshots.iter().map(|snapshot| {
        let taken = utc(snapshot.created.max(0) as u64);
        let space = format!("{} kept, {} by it alone", size(snapshot.kept_bytes), size(snapshot.alone_bytes));
        let unfinished = if snapshot.entry.is_none() { "  being taken" } else { "" };
        format!("{:<24}  {taken}  {space}{unfinished}\n", snapshot.name)
    });
    rows.collect()
}

/// `avidfs versions`.
pub fn versions(versions: &[VersionReport]) -> String {
    let rows = versions.iter().map(|version| {
        let now = version.current.then_some("now");
        let names: Vec<&str> = version.snapshots.iter().map(String::as_str).chain(now).collect();
        let what = match version.mode & libc::S_IFMT {
            libc::S_IFREG => size(version.size),
            libc::S_IFDIR => "folder".to_owned(),
            libc::S_IFLNK => "link".to_owned(),
            _ => "special file".to_owned(),
        };
        format!("{}  {what:>12}  {}\n", utc(version.modified.max(0) as u64), names.join(", "))
    });
    rows.collect()
}

/// `avidfs snapshot restore`.
pub fn restored(path: &str, snapshot: &str, report: &RestoreReport) -> String {
    let files = plural(report.files as usize, "file");
    let folders = plural(report.directories as usize, "folder");
    format!("{path} is as in snapshot {snapshot}: {files}, {folders}, {}\n", size(report.bytes))
}

/// `avidfs recover`, when it is done.
pub fn recovered(name: &str, state: &Path, usage: &Usage, head: &Signed, key: &VolumeKey) -> String {
    let place = head.entry.place;
    let state = state.display();
    let mut text = format!(
        "recovered volume {name} into {state}: {}, {} in {}\n\
         its last durable change is in entry {} of the journal, of epoch {}, written {}\n",
        plural(usage.inodes as usize, "inode"),
        size(usage.object_bytes),
        plural(usage.objects as usize, "object"),
        place.sequence,
        place.epoch,
        utc(head.entry.written),
    );
    if matches!(key, VolumeKey::Public(_)) {
        text.push_str("without the volume's key it can only be read: mount it with --read-only\n");
    }
    text
}

/// Seconds since 1970 as a date and time (the civil calendar from days, as in Hinnant's "chrono-compatible low-level date
/// algorithms").
fn utc(seconds: u64) -> String {
    let (days, rest) = (seconds / 86_400, seconds % 86_400);
    let shifted = days + 719_468;
    let (era, day) = (shifted / 146_097, shifted % 146_097);
    let year_of_era = (day - day / 1460 + day / 36_524 - day / 146_096) / 365;
    let day_of_year = day - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let month_from_march = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * month_from_march + 2) / 5 + 1;
    let month = if month_from_march < 10 { month_from_march + 3 } else { month_from_march - 9 };
    let year = year_of_era + 400 * era + u64::from(month <= 2);
    let (hours, minutes, seconds) = (rest / 3600, rest / 60 % 60, rest % 60);
    format!("{year}-{month:02}-{day:02} {hours:02}:{minutes:02}:{seconds:02} UTC")
}

fn nodes_line(status: &VolumeStatus) -> String {
    let placed: Vec<&NodeReport> = status.nodes.iter().filter(|node| node.placed).collect();
    let (up, all) = (status.nodes_up, placed.len());
    let stores = |nodes: usize| status.code.parse::<Code>().is_ok_and(|code| can_store(code, nodes));
    // A guest is as good as any.
    let answering: Vec<&NodeReport> = status.nodes.iter().filter(|node| node.answers()).collect();
    let not_full = answering.iter().filter(|node| node.state != "full").count();
    let unwell: BTreeSet<&str> = placed.iter().map(|node| node.state.as_str()).collect();
    let of_state = |state: &&str| {
        let nodes = placed.iter().filter(|node| node.state == *state);
        format!(", {} {state}", nodes.count())
    };
    let unwell: String =
        unwell.iter().filter(|state| !["up", "down"].contains(state)).map(of_state).collect();
    let verdict = if up == all && unwell.is_empty() {
        "all is well"
    } else if !stores(answering.len()) {
        "too few to store anything: writing fails until more answer"
    } else if !stores(not_full) {
        "too many are full to store anything: writing fails until there is room"
    } else if up == all {
        "reading and writing go on"
    } else {
        "reading and writing go on; fragments of the missing wait on others"
    };
    format!("{up} of {all} up{unwell}: {verdict}")
}

/// What the nodes that are gone may have taken with them. At worst an object lacks a fragment for each that is missing.
fn gone(status: &VolumeStatus) -> Option<String> {
    let gone = status.nodes_gone();
    let missing = status.nodes.iter().filter(|node| node.placed && !node.answers()).count();
    let spare = status.code.parse::<Code>().ok()?.p();
    let left = match spare.checked_sub(missing) {
        Some(survives) => losses(survives),
        None => "some files may not be readable".to_owned(),
    };
    let (who, them) = match gone {
        0 => return None,
        1 => ("1 node is at no known address".to_owned(), "it is started with the data it had"),
        _ => (format!("{gone} nodes are at no known address"), "they are started with the data they had"),
    };
    Some(format!("{who}: until {them}, or avidfs rebalance has made that anew, {left}"))
}

/// The right to write.
fn lease(status: &VolumeStatus) -> Option<String> {
    if status.fenced {
        return Some("taken over by another mount: changes are refused here".to_owned());
    }
    let lease = status.lease.as_ref()?;
    let problem = lease.problem.as_ref().map(|problem| format!(": {problem}")).unwrap_or_default();
    Some(match lease.seconds_left {
        0 => {
            format!("not renewed for {} s, another host may mount the volume{problem}", lease.renewed_seconds)
        }
        left => format!("held, for {left} s more if it is not renewed{problem}"),
    })
}

/// What of the metadata is in the pool.
fn journal(status: &VolumeStatus) -> Option<String> {
    let journal = status.journal.as_ref()?;
    let place = format!("entry {}", journal.sequence);
    if journal.waiting_changes == 0 {
        return Some(format!("{place}, every change is in the pool"));
    }
    let changes = plural(journal.waiting_changes as usize, "change");
    let seconds = journal.oldest_seconds.unwrap_or_default();
    let problem = journal.problem.as_ref().map(|problem| format!(": {problem}")).unwrap_or_default();
    Some(format!("{place}, {changes} not in the pool, the oldest for {seconds} s{problem}"))
}

fn rollback(status: &VolumeStatus) -> Option<String> {
    let (up, needed) = (status.roots_up, status.roots_to_be_fresh);
    (up < needed).then(|| {
        format!("protection against rollback is reduced: {up} of the nodes that keep the journal are up, {needed} are wanted")
    })
}

/// What is not yet as it should be; nothing if there is nothing.
fn pending(status: &VolumeStatus) -> Option<String> {
    let mut parts = Vec::new();
    if status.dirty_bytes > 0 {
        parts.push(format!("{} on their way to the nodes", size(status.dirty_bytes)));
    }
    if status.stripe.completing_objects > 0 {
        parts.push(format!("{} being completed", plural(status.stripe.completing_objects, "object")));
    }
    if status.backlog_bytes > 0 {
        parts.push(format!("{} in the backlog", size(status.backlog_bytes)));
    }
    if status.objects_not_at_home > 0 {
        let objects = plural(status.objects_not_at_home as usize, "object");
        parts.push(format!("{objects} with a fragment away from home"));
    }
    (!parts.is_empty()).then(|| parts.join(", "))
}

/// Nodes that gave bytes which did not check: a bad disk, or worse.
fn liars(status: &VolumeStatus) -> Option<String> {
    let lies = status.stripe.lies.iter().map(|(node, lies)| {
        let identity = node.to_string();
        let known = status.nodes.iter().find(|known| known.node.as_deref() == Some(&identity));
        let shown = known.map_or(short(&identity), |known| &known.address);
        format!("{} from {shown} did not check", plural(*lies as usize, "answer"))
    });
    let lies: Vec<String> = lies.collect();
    (!lies.is_empty()).then(|| lies.join(", "))
}

/// `avidfs blame`.
pub fn blame(cases: &[Case]) -> String {
    if cases.is_empty() {
        return "no node was caught at anything\n".to_owned();
    }
    let now = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |age| age.as_secs());
    let mut rows =
        vec![["", "NODE", "AGO", "OBJECT", "FRAGMENT", "VERDICT", "WHAT", "IDENTITY"].map(str::to_owned)];
    rows.extend(cases.iter().map(|case| {
        let verdict = match case.verdict {
            Verdict::Lied => "lied, signed",
            verdict => verdict.name(),
        };
        [
            String::new(),
            case.address.clone(),
            age(now.saturating_sub(case.at)),
            case.object.clone(),
            case.index.to_string(),
            verdict.to_owned(),
            case.what.clone(),
            case.node.to_string(),
        ]
    }));
    columns(&rows)
}

fn node_table(nodes: &[NodeReport]) -> String {
    let mut rows =
        vec![["", "NODE", "STATE", "USED", "CAPACITY", "FRAGMENTS", "ZONE", "IDENTITY"].map(str::to_owned)];
    rows.extend(nodes.iter().map(|node| {
        let state = match node.down_seconds {
            Some(seconds) => format!("{} for {}", node.state, age(seconds)),
            None if node.quarantined => format!("{}, quarantined", node.state),
            None if !node.placed => format!("{}, home of nothing", node.state),
            None => node.state.clone(),
        };
        // Of a node that never answered to this mount nothing is known but its address.
        let known = |text: String| if node.capacity_bytes == 0 { "-".to_owned() } else { text };
        [
            String::new(),
            node.address.clone(),
            state,
            known(size(node.used_bytes)),
            known(size(node.capacity_bytes)),
            known(count(node.fragments)),
            or_dash(node.zone.as_deref()),
            or_dash(node.node.as_deref().map(short)),
        ]
    }));
    columns(&rows)
}

/// `avidfs status --peers`.
pub fn pool(survey: &Survey) -> String {
    let answered = survey.answered.iter().map(|hello| NodeReport {
        address: hello.address.to_string(),
        node: Some(hello.info.node.to_string()),
        state: "up".to_owned(),
        down_seconds: None,
        zone: hello.info.zone.clone(),
        capacity_bytes: hello.info.capacity_bytes,
        used_bytes: hello.info.used_bytes,
        fragments: hello.info.fragments,
        quarantined: false,
        placed: true,
    });
    let nodes: Vec<NodeReport> = answered.collect();
    let mut text = node_table(&nodes);
    for (address, why) in &survey.silent {
        let _ = writeln!(text, "  {address}  no answer: {why}");
    }
    let mut volumes: Vec<String> = Vec::new();
    for entry in survey.answered.iter().flat_map(|hello| &hello.volumes) {
        let volume = &entry.descriptor;
        let line =
            format!("volume {}, code {}, {}  {}", volume.name, volume.code, volume.hash, volume.volume);
        if !volumes.contains(&line) {
            volumes.push(line);
        }
    }
    volumes.into_iter().fold(text, |text, line| text + &line + "\n")
}

/// The same as JSON.
pub fn pool_json(survey: &Survey) -> serde_json::Value {
    let nodes: Vec<_> = survey
        .answered
        .iter()
        .map(|hello| serde_json::json!({ "address": hello.address.0, "info": hello.info, "volumes": hello.volumes }))
        .collect();
    let silent: Vec<_> = survey
        .silent
        .iter()
        .map(|(address, why)| serde_json::json!({ "address": address.0, "reason": why }))
        .collect();
    serde_json::json!({ "nodes": nodes, "silent": silent })
}

/// `avidfs info`.
pub fn file(path: &str, file: &FileReport) -> String {
    let mut text = format!("{path}: {} in {}", size(file.size), plural(file.objects.len(), "object"));
    if file.unsaved_bytes > 0 {
        let _ = write!(text, ", {} not stored yet", size(file.unsaved_bytes));
    }
    text.push('\n');
    if let Some(survives) = file.survives {
        let _ = writeln!(text, "{}", losses(survives));
    }
    for object in &file.objects {
        text.push('\n');
        text.push_str(&object_lines(object));
    }
    text
}

fn object_lines(object: &ObjectReport) -> String {
    let ranges: Vec<String> =
        object.ranges.iter().map(|range| format!("{}..{}", range.start, range.end)).collect();
    let mut text = format!(
        "object {}: {}, code {}, bytes {} of the file; {}\n",
        object.key,
        size(u64::from(object.length)),
        object.code,
        ranges.join(" "),
        losses(object.survives)
    );
    let m = object.code.parse::<Code>().map_or(0, Code::m);
    let mut rows = vec![["", "FRAGMENT", "NODE", "PLACE", "THERE"].map(str::to_owned)];
    rows.extend(object.fragments.iter().map(|fragment| fragment_row(fragment, m)));
    text.push_str(&columns(&rows));
    text
}

fn fragment_row(fragment: &FragmentReport, m: usize) -> [String; 5] {
    let kind = if usize::from(fragment.index) < m { "data" } else { "parity" };
    let there = match (&fragment.problem, fragment.present) {
        (None, true) => "yes".to_owned(),
        (None, false) => "no".to_owned(),
        (Some(problem), _) => format!("no: {problem}"),
    };
    let node = fragment.address.as_deref().or(fragment.node.as_deref());
    [String::new(), format!("{} {kind}", fragment.index), or_dash(node), fragment.place.clone(), there]
}

fn losses(survives: usize) -> String {
    match survives {
        0 => "no more nodes may be lost".to_owned(),
        1 => "any one more node may be lost".to_owned(),
        more => format!("any {more} more nodes may be lost"),
    }
}

fn aligned(lines: &[(&str, String)]) -> String {
    let width = lines.iter().map(|(name, _)| name.len()).max().unwrap_or(0);
    lines.iter().map(|(name, text)| format!("{name:width$}  {text}\n")).collect()
}

fn columns<const N: usize>(rows: &[[String; N]]) -> String {
    let width = |column: usize| rows.iter().map(|row| row[column].chars().count()).max().unwrap_or(0);
    let widths: [usize; N] = std::array::from_fn(width);
    let line = |row: &[String; N]| {
        let cells: Vec<String> =
            row.iter().zip(widths).map(|(cell, width)| format!("{cell:width$}")).collect();
        format!("{}\n", cells.join("  ").trim_end())
    };
    rows.iter().map(line).collect()
}

fn or_dash(text: Option<&str>) -> String {
    text.unwrap_or("-").to_owned()
}

/// Enough of an identity to tell nodes apart by eye.
fn short(identity: &str) -> &str {
    identity.get(..12).unwrap_or(identity)
}

fn plural(number: usize, noun: &str) -> String {
    if number == 1 { format!("1 {noun}") } else { format!("{} {noun}s", count(number as u64)) }
}

fn age(seconds: u64) -> String {
    match seconds {
        0..120 => format!("{seconds} s"),
        120..7200 => format!("{} min", seconds / 60),
        _ => format!("{} h", seconds / 3600),
    }
}

/// `1,234,567`.
fn count(number: u64) -> String {
    let digits = number.to_string();
    let mut text = String::new();
    for (position, digit) in digits.chars().enumerate() {
        if position > 0 && (digits.len() - position).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

/// Three digits that matter: `0 B`, `999 B`, `1.25 GiB`, `12.5 MiB`, `125 KiB`.
fn size(bytes: u64) -> String {
    const UNITS: [&str; 6] = ["KiB", "MiB", "GiB", "TiB", "PiB", "EiB"];
    if bytes < 1024 {
        return format!("{bytes} B");
    }
    let power = bytes.ilog(1024).min(6);
    let value = bytes as f64 / 1024f64.powi(power as i32);
    let unit = UNITS[power as usize - 1];
    match value {
        ..9.995 => format!("{value:.2} {unit}"),
        9.995..99.95 => format!("{value:.1} {unit}"),
        _ => format!("{value:.0} {unit}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::journal::JournalStatus;
    use crate::lease::LeaseReport;
    use crate::stripe::StripeStatus;
    use crate::volume::SpaceReport;

    fn node(k: u16, down: bool) -> NodeReport {
        NodeReport {
            address: format!("http://10.0.0.{k}:7001"),
            node: Some(format!("{k:032x}")),
            state: if down { "down" } else { "up" }.into(),
            down_seconds: down.then_some(150),
            zone: (k == 1).then(|| "cellar".into()),
            capacity_bytes: 100 << 30,
            used_bytes: 5 << 30,
            fragments: 12_345,
            quarantined: false,
            placed: true,
        }
    }

    fn some_status(down: u16) -> VolumeStatus {
        VolumeStatus {
            name: "home".into(),
            volume: "07".repeat(16),
            code: "3+2".into(),
            hash: "blake3".into(),
            epoch: 4,
            read_only: false,
            nodes_up: 5 - usize::from(down),
            nodes_to_write: 4,
            nodes: (1..=5).map(|k| node(k, k <= down)).collect(),
            space: SpaceReport { total_bytes: 300 << 30, available_bytes: 285 << 30 },
            inodes: 1_234_567,
            objects: 10,
            object_bytes: 10 << 20,
            live_bytes: 9 << 20,
            objects_not_at_home: u64::from(down),
            dirty_bytes: 0,
            backlog_bytes: 0,
            journal: None,
            lease: None,
            fenced: false,
            roots_up: 5 - usize::from(down),
            roots_to_be_fresh: 4,
            snapshots: 0,
            cases: Vec::new(),
            stripe: StripeStatus::default(),
        }
    }

    #[test]
    fn times_are_dates_of_the_civil_calendar() {
        assert_eq!(utc(0), "1970-01-01 00:00:00 UTC");
        assert_eq!(utc(951_782_400), "2000-02-29 00:00:00 UTC");
        assert_eq!(utc(1_763_654_399), "2025-11-20 15:59:59 UTC");
        assert_eq!(utc(4_107_542_400), "2100-03-01 00:00:00 UTC");
    }

    #[test]
    fn a_healthy_volume_has_nothing_pending() {
        let text = status("/mnt/home", 4711, &some_status(0));
        assert!(text.contains("nodes     5 of 5 up: all is well\n"), "{text}");
        assert!(text.contains("content   1,234,567 inodes, 10.0 MiB in 10 objects, 9.00 MiB of it in use\n"));
        assert!(!text.contains("pending"));
        let mut late = some_status(0);
        (1..4).for_each(|k| late.nodes[k].state = if k == 1 { "full" } else { "lagging" }.into());
        let text = status("/mnt/home", 4711, &late);
        assert!(
            text.contains("nodes     5 of 5 up, 1 full, 2 lagging: reading and writing go on\n"),
            "{text}"
        );
        assert!(text.lines().all(|line| line == line.trim_end()));
    }

    #[test]
    fn a_degraded_volume_says_whether_writing_goes_on() {
        let text = status("/mnt/home", 4711, &some_status(2));
        assert!(text.contains("3 of 5 up: reading and writing go on"), "{text}");
        assert!(text.contains("down for 2 min"));
        assert!(text.contains("2 objects with a fragment away from home"));
        assert!(status("/mnt/home", 4711, &some_status(3)).contains("too few to store anything"));
    }

    /// An empty disk had taken the place of one that held fragments, and all was well.
    #[test]
    fn a_node_that_is_gone_is_missing_and_the_one_in_its_place_does_not_count_for_it() {
        let mut lost = some_status(0);
        lost.nodes_up = 4;
        lost.nodes[4].placed = false;
        let address = lost.nodes[4].address.clone();
        lost.nodes.push(NodeReport { address, state: "gone".into(), ..node(9, true) });
        let text = status("/mnt/home", 4711, &lost);
        assert!(text.contains("nodes     4 of 5 up, 1 gone: reading and writing go on; fragments"), "{text}");
        let told = "gone      1 node is at no known address: until it is started with the data it had, or avidfs rebalance \
                    has made that anew, any one more node may be lost\n";
        assert!(text.contains(told), "{text}");
        assert!(text.contains("gone for 2 min") && text.contains("up, home of nothing"), "{text}");
        (0..2).for_each(|k| lost.nodes[k].state = "down".into());
        let text = status("/mnt/home", 4711, &lost);
        assert!(text.contains("has made that anew, some files may not be readable\n"), "{text}");
        assert!(!status("/mnt/home", 4711, &some_status(1)).contains("gone"));
    }

    #[test]
    fn what_is_full_takes_nothing() {
        let mut full = some_status(0);
        (0..2).for_each(|k| full.nodes[k].state = "full".into());
        let text = status("/mnt/home", 4711, &full);
        assert!(text.contains("5 of 5 up, 2 full: reading and writing go on\n"), "{text}");
        (0..5).for_each(|k| full.nodes[k].state = "full".into());
        let text = status("/mnt/home", 4711, &full);
        assert!(
            text.contains("5 of 5 up, 5 full: too many are full to store anything: writing fails"),
            "{text}"
        );
    }

    #[test]
    fn the_lease_the_journal_and_the_protection_against_rollback_are_told() {
        let mut volume = some_status(0);
        volume.lease = Some(LeaseReport { renewed_seconds: 1, seconds_left: 8, problem: None });
        volume.journal = Some(JournalStatus { sequence: 12, ..JournalStatus::default() });
        let text = status("/mnt/home", 4711, &volume);
        assert!(text.contains("lease     held, for 8 s more if it is not renewed\n"), "{text}");
        assert!(text.contains("journal   entry 12, every change is in the pool\n"), "{text}");
        assert!(!text.contains("rollback"), "{text}");
        let mut volume = some_status(2);
        let problem = Some("2 of 5 nodes renew it".to_owned());
        volume.lease = Some(LeaseReport { renewed_seconds: 14, seconds_left: 0, problem });
        let (waiting_changes, oldest_seconds) = (3, Some(14));
        volume.journal =
            Some(JournalStatus { sequence: 12, waiting_changes, oldest_seconds, ..JournalStatus::default() });
        let text = status("/mnt/home", 4711, &volume);
        assert!(
            text.contains("not renewed for 14 s, another host may mount the volume: 2 of 5 nodes"),
            "{text}"
        );
        assert!(text.contains("entry 12, 3 changes not in the pool, the oldest for 14 s\n"), "{text}");
        assert!(text.contains("protection against rollback is reduced: 3 of the nodes"), "{text}");
        volume.fenced = true;
        assert!(status("/mnt/home", 4711, &volume).contains("lease     taken over by another mount"));
    }

    #[test]
    fn a_node_that_lied_is_named() {
        let mut volume = some_status(0);
        volume.stripe.lies.insert(format!("{:032x}", 2).parse().unwrap(), 7);
        let text = status("/mnt/home", 4711, &volume);
        assert!(text.contains("lies      7 answers from http://10.0.0.2:7001 did not check\n"), "{text}");
    }

    #[test]
    fn a_file_is_told_object_by_object() {
        let fragment = |index, problem: Option<&str>| FragmentReport {
            index,
            node: Some("aa".into()),
            address: Some(format!("http://10.0.0.{index}:7001")),
            place: if problem.is_some() { "nowhere" } else { "home" }.into(),
            present: problem.is_none(),
            problem: problem.map(str::to_owned),
        };
        let object = ObjectReport {
            key: "00000001-0000000000000003".into(),
            length: 4096,
            code: "2+1".into(),
            fpcc: String::new(),
            ranges: vec![0..1024, 8192..11264],
            fragments: vec![fragment(0, None), fragment(1, Some("no answer")), fragment(2, None)],
            survives: 0,
        };
        let report =
            FileReport { ino: 5, size: 11264, unsaved_bytes: 0, objects: vec![object], survives: Some(0) };
        let text = file("/mnt/a", &report);
        assert!(text.starts_with("/mnt/a: 11.0 KiB in 1 object\nno more nodes may be lost\n"), "{text}");
        assert!(text.contains("bytes 0..1024 8192..11264 of the file"));
        assert!(text.contains("1 data    http://10.0.0.1:7001  nowhere  no: no answer\n"), "{text}");
        assert!(text.contains("2 parity"));
    }

    #[test]
    fn sizes_and_counts_are_short() {
        let sizes = [0, 1023, 1024, 10_235, 102_400, (1 << 30) + (1 << 28), u64::MAX].map(size);
        assert_eq!(sizes, ["0 B", "1023 B", "1.00 KiB", "10.0 KiB", "100 KiB", "1.25 GiB", "16.0 EiB"]);
        assert_eq!([0, 999, 1000, 12_345_678].map(count), ["0", "999", "1,000", "12,345,678"]);
    }
}
