//! The mount: names and bytes above, verified fragments on a pool of nodes below.
