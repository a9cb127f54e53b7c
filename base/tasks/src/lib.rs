//! base-tasks
