//! Policies as operators write them, and requests as guests send them.

mod attacks;
mod expressions;
mod limits;
mod mistakes;
mod properties;
mod semantics;
mod support;
