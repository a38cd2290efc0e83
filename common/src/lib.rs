//! Values and pure functions shared by node and mount. No network, no disk, no clock.

pub mod code;
pub mod codec;
pub mod fingerprint;
pub mod fpcc;
pub mod gf256;
pub mod hash;
pub mod members;
pub mod metrics;
pub mod nearest;
pub mod paths;
pub mod quorum;
pub mod size;
pub mod slice;
pub mod wire;
