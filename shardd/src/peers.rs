//! How many connections each peer has, so that one alone does not take them all.

use std::collections::HashMap;
use std::net::{IpAddr, Ipv6Addr};
use std::sync::Arc;

use parking_lot::Mutex;

/// Who is connected, by address.
pub struct Peers {
    most: usize,
    counts: Mutex<HashMap<IpAddr, usize>>,
}

/// One connection of a peer; it counts until this is dropped.
pub struct Guest {
    peers: Arc<Peers>,
    address: IpAddr,
}

impl Peers {
    /// Each may have at most so many connections.
    pub fn new(most: usize) -> Arc<Peers> {
        Arc::new(Peers { most, counts: Mutex::default() })
    }

    /// One more of a peer; none if it has as many as it may.
    pub fn enter(self: &Arc<Self>, address: IpAddr) -> Option<Guest> {
        let address = peer_of(address);
        let mut counts = self.counts.lock();
        let count = counts.entry(address).or_default();
        if *count >= self.most {
            return None;
        }
        *count += 1;
        Some(Guest { peers: self.clone(), address })
    }
}

impl Drop for Guest {
    fn drop(&mut self) {
        let mut counts = self.peers.counts.lock();
        match counts.get_mut(&self.address) {
            Some(count) if *count > 1 => *count -= 1,
            _ => drop(counts.remove(&self.address)),
        }
    }
}

/// Of IPv6 a host has a whole network, and may come from any address in it (RFC 4291, 2.5.4).
fn peer_of(address: IpAddr) -> IpAddr {
    match address.to_canonical() {
        IpAddr::V6(address) => IpAddr::V6(Ipv6Addr::from_bits(address.to_bits() >> 64 << 64)),
        address => address,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ip(text: &str) -> IpAddr {
        text.parse().unwrap()
    }

    #[test]
    fn each_peer_has_its_own_share_and_gives_it_back() {
        let peers = Peers::new(2);
        let guests = [peers.enter(ip("10.0.0.1")), peers.enter(ip("::ffff:10.0.0.1"))];
        assert!(guests.iter().all(Option::is_some));
        assert!(peers.enter(ip("10.0.0.1")).is_none());
        assert!(peers.enter(ip("10.0.0.2")).is_some());
        drop(guests);
        assert!(peers.counts.lock().is_empty());
        let _guests = [peers.enter(ip("2001:db8::1")), peers.enter(ip("2001:db8::2"))];
        assert!(peers.enter(ip("2001:db8::3")).is_none());
        assert!(peers.enter(ip("2001:db8:0:1::1")).is_some());
    }
}
