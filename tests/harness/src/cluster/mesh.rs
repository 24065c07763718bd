//! A pod of a service mesh: it redirects its own connections to a proxy within.

use anyhow::Result;

use super::{Host, Server};

/// Where the proxy listens.
const MESH_PORT: u16 = 15_001;
/// The mark of the proxy's own packets, which are not redirected.
pub const MESH_MARK: u32 = 1337;

/// Which rules redirect.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MeshRules {
    /// Rules of nftables.
    Nftables,
    /// Rules of iptables over nftables.
    IptablesNft,
    /// Rules of iptables' own kernel part.
    IptablesLegacy,
}

impl Host {
    /// Starts the proxy.
    pub fn mesh_proxy(&self) -> Result<Server> {
        let mut command = self.peer("mesh")?;
        command.args(["--port", &MESH_PORT.to_string()]);
        Server::start(command, &format!("the mesh proxy of {}", self.name))
    }

    /// Redirects TCP connections to a port to the proxy, IPv4 and IPv6.
    pub fn redirect(&self, port: u16, rules: MeshRules) -> Result<()> {
        let program = match rules {
            MeshRules::Nftables => {
                self.netns.nft(&format!(
                    "table inet mesh {{
                        chain out {{
                            type nat hook output priority -100;
                            meta mark != {MESH_MARK} tcp dport {port} redirect to :{MESH_PORT}
                        }}
                    }}"
                ))?;
                return Ok(());
            }
            MeshRules::IptablesNft => ["iptables-nft", "ip6tables-nft"],
            MeshRules::IptablesLegacy => ["iptables-legacy", "ip6tables-legacy"],
        };
        let rule = format!(
            "-t nat -A OUTPUT -p tcp --dport {port} -m mark ! --mark {MESH_MARK} -j REDIRECT --to-ports {MESH_PORT}"
        );
        for program in program {
            self.netns.feed(program, &rule.split(' ').collect::<Vec<_>>(), "")?;
        }
        Ok(())
    }
}
