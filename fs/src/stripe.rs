//! stub
#![allow(missing_docs, unused)]
use crate::{
    error::Result,
    metadata::{Exception, ObjectRecord},
    transport::NodeAddress,
};
use bytes::Bytes;
use common::{
    code::Code,
    wire::{NodeId, ObjectId},
};
use std::{ops::Range, sync::Arc};
pub type PlacementChange = (ObjectId, Vec<Exception>);
pub struct Stripe;
pub struct FragmentLocation {
    pub index: u8,
    pub node: Option<NodeId>,
    pub address: Option<NodeAddress>,
    pub place: String,
    pub present: bool,
    pub problem: Option<String>,
}
impl Stripe {
    pub fn epoch(&self) -> u32 {
        0
    }
    pub fn next_id(&self) -> ObjectId {
        todo!()
    }
    pub async fn store(
        self: &Arc<Self>,
        id: ObjectId,
        padded: Bytes,
        length: u32,
        flush: bool,
    ) -> Result<ObjectRecord> {
        todo!()
    }
    pub async fn read(self: &Arc<Self>, object: &ObjectRecord, range: Range<u32>) -> Result<Vec<Bytes>> {
        todo!()
    }
    pub fn read_cached(
        &self,
        id: ObjectId,
        code: Code,
        length: u32,
        range: Range<u32>,
    ) -> Option<Vec<Bytes>> {
        todo!()
    }
    pub fn prefetch(self: &Arc<Self>, object: ObjectRecord) {}
    pub async fn flush(&self) -> Result<()> {
        todo!()
    }
    pub async fn delete(&self, objects: &[ObjectRecord]) -> Vec<ObjectId> {
        todo!()
    }
    pub async fn locate(&self, object: &ObjectRecord) -> Vec<FragmentLocation> {
        todo!()
    }
    pub async fn placement_changed(&self) {}
    pub fn keep_placement_changes(&self, c: Vec<PlacementChange>) {}
    pub fn take_placement_changes(&self) -> Vec<(ObjectId, Vec<Exception>)> {
        todo!()
    }
    pub async fn move_home(self: &Arc<Self>, object: &ObjectRecord) -> Result<Vec<Exception>> {
        todo!()
    }
    pub async fn drop_guests(&self, object: &ObjectRecord, left: &[Exception]) {}
    pub fn status(&self) -> u32 {
        0
    }
}
