//! Opening a snapshot: its metadata is read from the pool into a folder of its own, below the state folder of its volume,
//! and kept there for the next time. It takes no epoch, and whoever has the volume itself mounted does not notice.

use std::path::Path;
use std::sync::Arc;

use common::wire::VolumeDescriptor;
use ed25519_dalek::VerifyingKey;

use super::{HELLO_LIMIT, Opened, Reach, newest_configuration, open_store, reach};
use crate::config::{MountConfig, SnapshotOf};
use crate::journal::chain::Reader;
use crate::journal::key::VolumeKey;
use crate::journal::pin::Pin;
use crate::journal::{self, Position};
use crate::metadata::MetadataStore;
use crate::mount::{self, Survey};
use crate::pool::{Pool, PoolOptions};
use crate::recover;
use crate::state::{self, Refusal, StateFolder};

/// Open a snapshot of the volume that a state folder belongs to.
pub(super) async fn open(config: &MountConfig, wanted: &SnapshotOf) -> Result<Opened, Refusal> {
    let (name, of) = (&wanted.name, wanted.state.display());
    let remembered = state::look(&wanted.state)?.ok_or_else(|| {
        Refusal(format!("there is no volume in {of}, whose snapshot {name} could be mounted"))
    })?;
    let public = state::key_in(&wanted.state)?.public();
    let known = remembered.known();
    let nodes = state::nodes_in(&wanted.state);
    let Reach { transport, addresses, embedded } =
        reach(config, &nodes, &known, known.len()).map_err(|refusal| explain(refusal, config, &nodes))?;
    let survey = mount::survey(&transport, &addresses, &known, HELLO_LIMIT.min(config.io_timeout)).await;
    let descriptor = descriptor(&survey, remembered.volume)
        .ok_or_else(|| Refusal(format!("no node that answers knows the volume of {of}")))?;
    let (code, hash) = recover::shape(&descriptor)?;
    recover::check_enough(&survey, &descriptor, code.m())?;
    let options = PoolOptions { io_limit: config.io_timeout, ..PoolOptions::default() };
    let pool = Pool::connect(transport, addresses, &known, options).await?;
    pool.start();
    let reader = Reader {
        pool: pool.clone(),
        volume: remembered.volume,
        code,
        hash,
        io_limit: config.io_timeout,
        accept_loss: None,
        unfenced: Default::default(),
    };
    let pin = pin(&reader, &public, name).await?;
    let state = StateFolder::take(&config.state)?;
    let store = open_store(&state)?;
    bring_to(&store, &reader, &pin, &public).await?;
    let settings = store.settings()?.ok_or_else(|| Refusal(format!("snapshot {name} holds no volume")))?;
    let configuration = newest_configuration(&*store, &settings)?;
    let nodes = mount::nodes_to_use(&survey, false, &settings, &configuration, &known)?;
    state.remember(&remembered)?;
    let (key, position) = (VolumeKey::Public(public), Position::default());
    Ok(Opened { state, store, settings, nodes, configuration, lease: None, pool, key, position, embedded })
}

/// Nodes inside the daemon of the volume itself answer nobody else.
fn explain(refusal: Refusal, config: &MountConfig, nodes: &Path) -> Refusal {
    if config.peers.is_some() || !nodes.exists() {
        return refusal;
    }
    Refusal(format!(
        "the nodes of this volume run inside its mount daemon, so a snapshot can be mounted only while the volume is \
         not; avidfs snapshot restore brings back what is in one: {refusal}"
    ))
}

fn descriptor(survey: &Survey, volume: common::wire::VolumeId) -> Option<VolumeDescriptor> {
    let told = survey.answered.iter().flat_map(|hello| &hello.volumes);
    told.map(|entry| &entry.descriptor).find(|descriptor| descriptor.volume == volume).cloned()
}

async fn pin(reader: &Reader, public: &VerifyingKey, name: &str) -> Result<Pin, Refusal> {
    let chain = reader.read(Some(public)).await?;
    let chain = chain.ok_or_else(|| Refusal("the nodes hold nothing of the volume's journal".to_owned()))?;
    let snapshots = journal::snapshots(reader, &chain).await?;
    let found = snapshots.iter().find(|snapshot| snapshot.name == name);
    let pin = found.map(Pin::of).transpose()?.flatten();
    pin.ok_or_else(|| {
        let names: Vec<&str> = snapshots.iter().map(|snapshot| snapshot.name.as_str()).collect();
        let known = if names.is_empty() {
            "there are none".to_owned()
        } else {
            format!("there are {}", names.join(", "))
        };
        Refusal(format!("the volume has no snapshot {name}: {known}"))
    })
}

async fn bring_to(
    store: &Arc<dyn MetadataStore>,
    reader: &Reader,
    pin: &Pin,
    public: &VerifyingKey,
) -> Result<(), Refusal> {
    if journal::is_at(&**store, pin) {
        return Ok(());
    }
    let chain = reader.read_pinned(pin, public).await?;
    Ok(journal::restore(store, reader, &chain, &|_, _| ()).await?)
}
