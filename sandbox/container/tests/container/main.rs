//! Containers on this machine: real namespaces, overlay, volume, cgroups and system-call filter.
//! What cannot run here says `SKIP`.

mod images;
mod leftovers;
mod life;
mod limits;
mod neighbours;
mod oldest_kernel;
mod prepared;
mod real_agent;
mod support;
mod walls;
