//! Values and pure functions shared by node and mount. No network, no disk, no clock.

pub mod wire;
