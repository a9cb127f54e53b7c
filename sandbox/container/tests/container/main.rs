//! Containers on this machine: real namespaces, overlay, volume, cgroups and system-call filter.
//! What cannot run here says `SKIP`.

mod leftovers;
mod life;
mod limits;
mod support;
mod walls;
