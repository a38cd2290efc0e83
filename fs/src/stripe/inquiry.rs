//! Bytes came that contradict what the node acknowledged: it is asked what it has to say, and that is noted.

use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use bytes::Bytes;
use common::fpcc::Fpcc;
use common::hash::Hash;
use common::wire::{FragmentName, NodeId, Nonce, RefusalCode, Statement};
use rand::TryRngCore;
use rand::rngs::OsRng;
use tokio::time::Instant;

use super::Stripe;
use crate::evidence::{Case, Signed, Verdict};
use crate::transport::TransportError;

/// What came instead of what.
pub(super) struct Contradiction {
    /// The fragment that was asked for.
    pub(super) name: FragmentName,
    /// The digest of the FPCC under which it was acknowledged.
    pub(super) fpcc: Hash,
    /// The FPCC itself, if it is at hand.
    pub(super) known: Option<Arc<Fpcc>>,
    /// The bytes that came.
    pub(super) found: Bytes,
    /// What was wrong.
    pub(super) what: String,
}

/// Before a node that did not answer, or not with what was asked, is asked again.
const PAUSES: [Duration; 3] = [Duration::from_secs(1), Duration::from_secs(3), Duration::from_secs(10)];

impl Stripe {
    /// Ask in the background; a few nodes at a time. What is not asked about now will come again.
    pub(super) fn inquire(self: &Arc<Self>, node: NodeId, contradiction: Contradiction) {
        let stripe = self.clone();
        if self.pool.evidence().is_some() {
            tokio::spawn(async move { stripe.ask_to_explain(node, contradiction, &PAUSES).await });
        }
    }

    /// Ask now, once, as what came is about to be replaced.
    pub(super) async fn inquire_at_once(&self, node: NodeId, contradiction: Contradiction) {
        if self.pool.evidence().is_some() {
            self.ask_to_explain(node, contradiction, &[]).await;
        }
    }

    async fn ask_to_explain(&self, node: NodeId, contradiction: Contradiction, pauses: &[Duration]) {
        let Some(inquiry) = self.pool.inquiry(node, &contradiction.name) else { return };
        let (verdict, signed) = self.explained(node, &contradiction, pauses).await;
        if verdict != Verdict::Rotten && inquiry.is_moot() {
            return;
        }
        let Contradiction { name, fpcc, known, found, what } = contradiction;
        let index = usize::from(name.index);
        let known = known.filter(|known| index < known.code().n());
        self.pool.accuse(Case {
            at: SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |age| age.as_secs()),
            node,
            address: self.called(node),
            volume: self.options.volume,
            object: name.key,
            version: name.version,
            index: name.index,
            fpcc: fpcc.to_string(),
            expected: known.map(|known| known.fragment_hash(index).to_string()),
            found: self.options.hash.hash(&found).to_string(),
            what,
            verdict,
            signed,
        });
    }

    async fn explained(
        &self,
        node: NodeId,
        about: &Contradiction,
        pauses: &[Duration],
    ) -> (Verdict, Option<Signed>) {
        let mut nonce = Nonce([0; 16]);
        // Without randomness an old statement could be given again; then none is asked for.
        let (Ok(()), Ok(address)) = (OsRng.try_fill_bytes(&mut nonce.0), self.address(node)) else {
            return (Verdict::Unexplained, None);
        };
        let (transport, volume) = (self.pool.transport(), self.options.volume);
        let mut pauses = pauses.iter();
        loop {
            let limit = self.left(Instant::now() + self.options.io_limit);
            match transport.statement(&address, volume, &about.name, nonce, limit).await {
                Ok(answer) => {
                    let signed = self.signed_by(node, nonce, &answer.value, about);
                    return (signed.as_ref().map_or(Verdict::Unexplained, |_| Verdict::Lied), signed);
                }
                Err(TransportError::Refused { code: RefusalCode::NotFound, .. }) => {
                    return (Verdict::Rotten, None);
                }
                Err(_) => match pauses.next() {
                    Some(pause) => tokio::time::sleep(*pause).await,
                    None => return (Verdict::Unexplained, None),
                },
            }
        }
    }

    /// The statement with the node's key, if it is one about this very fragment.
    fn signed_by(
        &self,
        node: NodeId,
        nonce: Nonce,
        statement: &Statement,
        about: &Contradiction,
    ) -> Option<Signed> {
        if statement.fpcc.parse::<Hash>().ok()? != about.fpcc {
            return None;
        }
        let signed = Signed { key: self.pool.key_of(node)?, nonce, signature: statement.signature };
        let volume = Some(self.options.volume);
        signed.fits(node, volume, &about.name, about.fpcc.as_bytes()).then_some(signed)
    }
}
