//! Bringing fragments home that a guest keeps or nobody does (volume.md section 1): store there and flush, let the
//! caller commit, then delete the guest's copy.

use std::sync::Arc;

use common::wire::{FragmentName, NodeId, Operation};
use futures_util::future::join_all;
use tokio::time::Instant;

use super::Stripe;
use super::delete::is_gone;
use super::encoded::fragment_name;
use super::spread::survives;
use crate::error::{Error, Result};
use crate::metadata::{Exception, ObjectRecord};
use crate::pool::NodeState;

impl Stripe {
    /// Store each fragment that is not at home there, flushed: taken from its guest, or made from m others, and in any
    /// case accepted only if it agrees with the object's FPCC. A fragment stays with its guest where its home keeps so many
    /// others for nodes that are away that the object would survive fewer losses.
    ///
    /// Returns what is still not at home, such as what belongs to a node that is down. The caller commits that, and
    /// once it is durable calls `drop_guests` with the exceptions as they were before. `Unreadable` when fragments
    /// can neither be had nor made; others may have been brought home all the same, and are at the next call. `ReadOnly`
    /// once another mount has taken the volume over.
    pub async fn move_home(self: &Arc<Self>, object: &ObjectRecord) -> Result<Vec<Exception>> {
        let deadline = Instant::now() + self.options.io_limit;
        let homes = self.homes_of(object);
        let mut there = Vec::new();
        for exception in self.to_move_home(object, &homes) {
            let home = homes[usize::from(exception.index)];
            if self.bring_home(object, exception, home, deadline).await? {
                there.push(exception);
            }
        }
        // Without those that were not taken the others may lie worse.
        let moved = self.harmless(object, &homes, there);
        Ok(object.exceptions.iter().filter(|exception| !moved.contains(exception)).copied().collect())
    }

    fn to_move_home(&self, object: &ObjectRecord, homes: &[NodeId]) -> Vec<Exception> {
        let is_due = |exception: &&Exception| self.may_take(exception, homes[usize::from(exception.index)]);
        self.harmless(object, homes, object.exceptions.iter().filter(is_due).copied().collect())
    }

    /// Of moves home those after which the object survives as many losses as before: all of them, or else one after the other
    /// as long as it does. A guest that is down may come back with what it keeps, one that is gone does not.
    fn harmless(&self, object: &ObjectRecord, homes: &[NodeId], mut moves: Vec<Exception>) -> Vec<Exception> {
        // While a home is down that is each object with something for it, every few seconds.
        if moves.is_empty() {
            return moves;
        }
        let is_there = |keeper: Option<NodeId>| keeper.filter(|&node| !self.pool.is_gone(node));
        let before: Vec<Option<NodeId>> = self.keepers(object).into_iter().map(is_there).collect();
        let after = |moves: &[Exception]| {
            let mut holders = before.clone();
            for index in moves.iter().map(|exception| usize::from(exception.index)) {
                holders[index] = Some(homes[index]);
            }
            survives(object.code, &holders)
        };
        let least = after(&[]);
        if after(&moves) >= least {
            return moves;
        }
        let mut chosen = Vec::new();
        while let Some(place) =
            moves.iter().position(|next| after(&[&chosen[..], &[*next]].concat()) >= least)
        {
            chosen.push(moves.remove(place));
        }
        chosen
    }

    /// What would not be at home of an object that is placed by the current configuration instead of its own: whatever lies
    /// with another node, which keeps it until then. None if it is placed by the current one, or can be by none.
    pub fn away_if_placed_anew(&self, object: &ObjectRecord) -> Option<Vec<Exception>> {
        let fits = self.nodes_of(self.current).len() >= object.code.n() && self.has_homes(object);
        if object.configuration == self.current || !fits {
            return None;
        }
        let homes = self.homes(self.current, object.id, object.code);
        let all = homes.into_iter().zip(self.keepers(object)).enumerate();
        let away = all.filter(|(_, (home, keeper))| *keeper != Some(*home));
        Some(away.map(|(index, (_, keeper))| Exception { index: index as u8, node: keeper }).collect())
    }

    /// Whether `move_home` would bring anything home now, as far as is known of the nodes.
    pub fn can_move_home(&self, object: &ObjectRecord) -> bool {
        !self.to_move_home(object, &self.homes_of(object)).is_empty()
    }

    /// Delete the copies of guests whose fragments are home by now: `before` as it was when `move_home` was called,
    /// `object` as it is committed. Returns whether every guest confirmed; who did not keeps a copy nobody needs.
    pub async fn drop_guests(self: &Arc<Self>, object: &ObjectRecord, before: &[Exception]) -> bool {
        let deadline = Instant::now() + self.options.io_limit;
        let homes = self.homes_of(object);
        let is_home =
            |exception: &&Exception| !object.exceptions.iter().any(|now| now.index == exception.index);
        let drops = before.iter().filter(is_home).filter_map(|exception| {
            let home = homes[usize::from(exception.index)];
            let guest = exception.node.filter(|&guest| guest != home && !self.pool.is_gone(guest))?;
            Some(self.drop_copy(guest, fragment_name(object.id, usize::from(exception.index)), deadline))
        });
        join_all(drops).await.into_iter().all(|dropped| dropped)
    }

    /// Delete a fragment of which a node has something else, or nothing readable, so that it can be stored there again.
    /// Returns whether it is gone.
    pub async fn drop_wrong(&self, object: &ObjectRecord, index: u8, node: NodeId) -> bool {
        let deadline = Instant::now() + self.options.io_limit;
        self.drop_copy(node, fragment_name(object.id, usize::from(index)), deadline).await
    }

    /// What nobody has goes to a node in quarantine all the same: it is better there than nowhere.
    fn may_take(&self, exception: &Exception, home: NodeId) -> bool {
        let stays = exception.node.is_some() && self.pool.is_quarantined(home);
        !stays && !matches!(self.pool.state(home), NodeState::Down { .. } | NodeState::Full)
    }

    /// False when the home did not take it.
    async fn bring_home(
        self: &Arc<Self>,
        object: &ObjectRecord,
        exception: Exception,
        home: NodeId,
        deadline: Instant,
    ) -> Result<bool> {
        let index = usize::from(exception.index);
        let fetched = self.fragment(object, index, deadline).await?;
        let (fpcc, bytes) = (fetched.fpcc.clone(), fetched.bytes.clone());
        let checked = self.cpu.check(self.options.hash, bytes.len(), move || fpcc.check(index, bytes)).await;
        let checked =
            checked.map_err(|error| Error::Unreadable { object: object.id, reason: error.to_string() })?;
        let (name, fpcc) = (fragment_name(object.id, index), fetched.fpcc.to_bytes().into());
        let put = self.put_bytes(home, &name, fpcc, checked.into_bytes(), true, self.left(deadline)).await;
        match put {
            Ok(_) => Ok(true),
            // Whoever waits for the fragment would wait for ever.
            Err(error) if error.is_fence() && self.is_taken_over().await => Err(Error::ReadOnly),
            Err(error) => {
                tracing::debug!(object = %object.id, index, node = %self.called(home), %error, "not brought home");
                Ok(false)
            }
        }
    }

    async fn drop_copy(&self, guest: NodeId, name: FragmentName, deadline: Instant) -> bool {
        self.pool.note_change(guest, &name);
        let answer = self.ask_batch(guest, &[Operation::Delete(name)], false, deadline).await;
        answer.is_ok_and(|answer| is_gone(answer.value[0].status))
    }
}
