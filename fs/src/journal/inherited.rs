//! Changes that an earlier mount committed and never brought to the pool: whether the objects they name are there.
//!
//! Whoever crashed may have committed what nodes had acknowledged and not flushed, and nodes may have lost power since.
//! A journal that names such an object would take what it replaced along.

use std::collections::BTreeSet;
use std::sync::Arc;

use common::wire::ObjectId;

use super::chain::Reader;
use crate::error::{Error, Result};
use crate::metadata::record::{self, Record};
use crate::metadata::{MetadataStore, ObjectRecord};
use crate::stripe::{Flushed, Stripe};

/// The objects named by changes after `upto` of which too little is left. All others are flushed when it returns, and
/// the store knows where their fragments are.
///
/// # Errors
/// `Pool`: one may be on nodes that do not answer; the store's.
pub(super) async fn lost_objects(
    metadata: &Arc<dyn MetadataStore>,
    reader: &Reader,
    upto: u64,
) -> Result<Vec<ObjectId>> {
    let objects = named_objects(&**metadata, upto)?;
    if objects.is_empty() {
        return Ok(Vec::new());
    }
    let stripe = reader.stripe(metadata.configurations()?)?;
    let mut lost = Vec::new();
    for (object, held) in objects.iter().zip(stripe.find_flushed(&objects).await) {
        match held.count < object.code.m() {
            true if held.silent.is_empty() => lost.push(object.id),
            true => return Err(may_be_elsewhere(object, &held)),
            false if held.exceptions != object.exceptions => {
                metadata.set_exceptions(object.id, &held.exceptions)?;
            }
            false => {}
        }
    }
    Ok(lost)
}

/// Store again those of the objects that changes after `upto` name which too few nodes are known to have, before the
/// journal names them: one node less must not make them unreadable.
///
/// # Errors
/// `TooFewNodes`, `NoSpace`, `Unreadable`, `ReadOnly`; the store's. What was stored stays so, and the call may be repeated.
pub(super) async fn make_whole(metadata: &dyn MetadataStore, stripe: &Arc<Stripe>, upto: u64) -> Result<()> {
    let objects = named_objects(metadata, upto)?;
    let found = stripe.find_flushed(&objects).await;
    // A node that does not answer may have forgotten what it was not asked to flush.
    for (object, _) in objects.iter().zip(found).filter(|(_, found)| !found.is_stored) {
        let exceptions = stripe.store_again(object).await?;
        metadata.set_exceptions(object.id, &exceptions)?;
    }
    Ok(())
}

/// The objects that changes after `upto` brought, as they are now.
fn named_objects(metadata: &dyn MetadataStore, upto: u64) -> Result<Vec<ObjectRecord>> {
    let outbox = metadata.outbox(upto, usize::MAX)?;
    let mut named = BTreeSet::new();
    for record in record::decode_all(&outbox.records)? {
        match record {
            Record::Object(object) => named.insert(object.id),
            Record::NoObject(id) => named.remove(&id),
            _ => false,
        };
    }
    named.into_iter().map(|id| metadata.object(id)).collect()
}

fn may_be_elsewhere(object: &ObjectRecord, held: &Flushed) -> Error {
    Error::Pool(format!(
        "object {} was committed and never reached the journal, and {} of {} fragments are found; no answer from {}",
        object.id,
        held.count,
        object.code.m(),
        held.silent.join(", ")
    ))
}
