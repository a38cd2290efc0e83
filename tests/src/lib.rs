//! What several test suites share: clusters, mounts, seeded data.
