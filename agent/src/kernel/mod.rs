//! (placeholder until the kernel side is merged: same names and signatures)
use serde::Serialize;
use std::net::SocketAddr;
use std::ops::RangeInclusive;
use std::os::fd::AsRawFd;

#[derive(Clone, Debug, Default, PartialEq)]
pub struct Policy {
    pub include: Vec<Rule>,
    pub exclude: Vec<Rule>,
}
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Rule {
    pub cidr: Option<ipnet::IpNet>,
    pub ports: Vec<RangeInclusive<u16>>,
}
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum OnAgentLoss {
    #[default]
    Allow,
    Refuse,
}
#[derive(Clone, Debug, Serialize)]
pub struct Process {
    pub pid: u32,
    pub uid: u32,
    pub comm: String,
    pub cgroup_id: u64,
    pub netns_cookie: u64,
}
#[derive(Clone, Debug)]
pub struct Handover {
    pub original_dst: SocketAddr,
    pub process: Process,
}
#[derive(Debug, thiserror::Error)]
#[error("kernel")]
pub struct KernelError;
#[derive(Clone, Debug)]
pub struct Kernel;
impl Kernel {
    pub fn handover(&self, _socket: &impl AsRawFd) -> Result<Option<Handover>, KernelError> {
        Ok(None)
    }
    pub fn stamp_bypass(&self, _socket: &impl AsRawFd) -> Result<(), KernelError> {
        Ok(())
    }
}
