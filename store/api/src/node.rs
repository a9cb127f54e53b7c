//! Nodes that share a store, and which of them has a session.

use base_types::NodeId;

/// The owner of a session as the store sees it at this moment.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Owner {
    pub node: NodeId,
    /// It has said that it is alive, and that has not run out.
    pub alive: bool,
    /// The session's sandbox is recorded there and is not gone: its files are on that node.
    pub holds_volume: bool,
}
