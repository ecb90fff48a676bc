//! What the end-to-end tests and the benchmarks share: the product's real binary, the engine and the cluster, each with
//! a time limit on everything that is asked of it.
//!
//! [`given`] finds what was prepared; [`test`] gives a test its turn and cleans up behind it; [`tp`] runs the binary;
//! [`docker`], [`kubectl`] and [`kubeconfig`] are the means to look at the world around it, [`host`] and [`proc`] at the
//! machine.

pub mod docker;
pub mod given;
pub mod host;
pub mod kubeconfig;
pub mod kubectl;
pub mod proc;
pub mod process;
pub mod runtime;
pub mod test;
pub mod tp;
pub mod wait;
