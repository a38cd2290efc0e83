//! What a mount counts, as Prometheus reads it.

use std::sync::Arc;

use axum::Router;
use axum::extract::State;
use axum::http::StatusCode;
use axum::http::header::CONTENT_TYPE;
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use common::metrics::{Page, label};
use tokio::net::TcpListener;

use crate::cache::CacheStats;
use crate::stages;
use crate::volume::{NodeReport, Volume, VolumeStatus};

/// Answers `GET /metrics`, for ever.
pub async fn serve(listener: TcpListener, volume: Arc<Volume>) {
    let app = Router::new().route("/metrics", get(answer)).with_state(volume);
    shardd::serve(listener, app, shardd::Limits::default(), std::future::pending()).await;
}

async fn answer(State(volume): State<Arc<Volume>>) -> Response {
    match volume.status().await {
        Ok(status) => ([(CONTENT_TYPE, "text/plain; version=0.0.4")], page(&status)).into_response(),
        Err(error) => (StatusCode::INTERNAL_SERVER_ERROR, error.to_string()).into_response(),
    }
}

/// Everything, as text.
pub fn page(status: &VolumeStatus) -> String {
    let mut page = Page::default();
    page.head("avidfs_volume_info", "gauge", "The volume; always 1.");
    let (name, volume, code) = (label(&status.name), &status.volume, &status.code);
    let labels = format!("name=\"{name}\",volume=\"{volume}\",code=\"{code}\"");
    page.line("avidfs_volume_info", &labels, 1);
    let (space, stripe) = (status.space, &status.stripe);
    let gauges = [
        ("avidfs_epoch", "The epoch of this mount.", u64::from(status.epoch)),
        ("avidfs_fenced", "Whether another mount has taken the volume over.", u64::from(status.fenced)),
        ("avidfs_nodes_up", "Nodes with objects placed on them that answer.", status.nodes_up as u64),
        ("avidfs_nodes_gone", "Those that are at no known address.", status.nodes_gone() as u64),
        ("avidfs_nodes_to_write", "Nodes that must answer for writes.", status.nodes_to_write as u64),
        ("avidfs_total_bytes", "Bytes of files the pool could hold.", space.total_bytes),
        ("avidfs_available_bytes", "Bytes of files it can still take.", space.available_bytes),
        ("avidfs_inodes", "Inodes.", status.inodes),
        ("avidfs_objects", "Objects.", status.objects),
        ("avidfs_object_bytes", "Bytes in objects.", status.object_bytes),
        ("avidfs_live_bytes", "Bytes in objects that files refer to.", status.live_bytes),
        ("avidfs_objects_away", "Objects with a fragment that is not at home.", status.objects_not_at_home),
        ("avidfs_dirty_bytes", "Bytes written and not yet stored.", status.dirty_bytes),
        ("avidfs_backlog_bytes", "Bytes that wait on this host's disk.", status.backlog_bytes),
        ("avidfs_unflushed_bytes", "Bytes of fragments kept until nodes flushed.", stripe.unflushed_bytes),
        ("avidfs_sending_objects", "Objects being sent.", stripe.sending_objects as u64),
        ("avidfs_fetching_objects", "Objects being fetched.", stripe.fetching_objects as u64),
        ("avidfs_snapshots", "Snapshots.", status.snapshots as u64),
    ];
    for (name, help, value) in gauges {
        page.single(name, "gauge", help, value);
    }
    let counters = [
        ("avidfs_hedged_reads_total", "Fragments asked for twice, as the first was slow.", stripe.hedges),
        ("avidfs_degraded_reads_total", "Reads that had to rebuild data fragments.", stripe.degraded_reads),
    ];
    for (name, help, value) in counters {
        page.single(name, "counter", help, value);
    }
    write_cache(&mut page, &stripe.cache);
    write_nodes(&mut page, status);
    stages::write(&mut page);
    page.text()
}

fn write_cache(page: &mut Page, cache: &CacheStats) {
    let levels = [
        ("avidfs_cache_bytes", "gauge", "Bytes of fragments cached.", cache.memory_bytes, cache.disk_bytes),
        (
            "avidfs_cache_fragments",
            "gauge",
            "Fragments cached.",
            cache.memory_fragments,
            cache.disk_fragments,
        ),
        (
            "avidfs_cache_hits_total",
            "counter",
            "Fragments found in the cache.",
            cache.memory_hits,
            cache.disk_hits,
        ),
        (
            "avidfs_cache_misses_total",
            "counter",
            "Fragments looked for and not found in the cache.",
            cache.memory_misses,
            cache.disk_misses,
        ),
    ];
    for (name, kind, help, memory, disk) in levels {
        page.head(name, kind, help);
        page.line(name, "level=\"memory\"", memory);
        page.line(name, "level=\"disk\"", disk);
    }
    let left_out = "avidfs_cache_left_out_total";
    page.head(left_out, "counter", "Fragments that left memory and were not written to the cache on disk.");
    page.line(left_out, "reason=\"read_once\"", cache.disk_passed);
    page.line(left_out, "reason=\"disk_behind\"", cache.disk_skipped);
    let rotten = "Fragments of the cache on disk whose bytes had changed.";
    page.single("avidfs_cache_rotten_total", "counter", rotten, cache.disk_rotten);
}

fn write_nodes(page: &mut Page, status: &VolumeStatus) {
    type Value = fn(&NodeReport) -> u64;
    let gauges: [(&str, &str, Value); 3] = [
        ("avidfs_node_up", "Whether the node answers.", |node| u64::from(node.answers())),
        ("avidfs_node_used_bytes", "Bytes the node has filled.", |node| node.used_bytes),
        ("avidfs_node_quarantined", "Whether there is evidence against it.", |node| {
            u64::from(node.quarantined)
        }),
    ];
    for (name, help, value) in gauges {
        page.head(name, "gauge", help);
        for node in &status.nodes {
            let (address, id) = (label(&node.address), node.node.as_deref().unwrap_or_default());
            page.line(name, &format!("address=\"{address}\",node=\"{id}\""), value(node));
        }
    }
    page.head(
        "avidfs_node_cases",
        "gauge",
        "What the node was caught at, by verdict, until avidfs blame --clear.",
    );
    for case in &status.cases {
        let labels = format!("node=\"{}\",verdict=\"{}\"", case.node, case.verdict);
        page.line("avidfs_node_cases", &labels, case.count);
    }
    page.head("avidfs_node_wrong_answers_total", "counter", "Answers that failed their check.");
    for (node, count) in &status.stripe.lies {
        page.line("avidfs_node_wrong_answers_total", &format!("node=\"{node}\""), count);
    }
}
