//! What the tests, the scenarios of `e2e` and the benchmark share: TCP ports for daemons that they start.

use std::net::TcpListener;
use std::sync::Mutex;

/// One process at a time takes ports from a block of so many; the first port of a block is the sign that it is taken.
const BLOCK: u16 = 16;
/// Where the blocks begin. All lie below the range from which Linux takes the ports of outgoing connections: a daemon that dials
/// another one which does not listen yet would otherwise now and then be given that very port, or connect to itself.
const FIRST: u16 = 12_000;
const BLOCKS: u16 = 1_200;

/// The blocks of this process, held until it ends.
static HELD: Mutex<Vec<TcpListener>> = Mutex::new(Vec::new());

/// `count` neighbouring ports (1..=15) that are free on every local address and that no other caller, in this process or in
/// another, is given while this process lives. Returns the first one.
///
/// # Errors
///
/// A sentence, when no block of ports is free.
pub fn ports(count: u16) -> Result<u16, String> {
    if !(1..BLOCK).contains(&count) {
        return Err(format!("{count} ports asked for; 1 to {} can be had", BLOCK - 1));
    }
    let mut held = HELD.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
    // Processes begin at different blocks so that they seldom try the same ones.
    let begin = std::process::id() % u32::from(BLOCKS);
    for n in 0..BLOCKS {
        let block = FIRST + ((begin + u32::from(n)) % u32::from(BLOCKS)) as u16 * BLOCK;
        let Ok(sign) = TcpListener::bind(("0.0.0.0", block)) else { continue };
        let first = block + 1;
        if (first..first + count).all(|port| TcpListener::bind(("0.0.0.0", port)).is_ok()) {
            held.push(sign);
            return Ok(first);
        }
    }
    Err(format!("no {count} neighbouring free ports from {FIRST} on"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nobody_is_given_a_port_twice() {
        let blocks: Vec<u16> = (0..20).map(|_| ports(3).unwrap()).collect();
        let mut all: Vec<u16> = blocks.iter().flat_map(|&b| b..b + 3).collect();
        all.sort_unstable();
        all.dedup();
        assert_eq!(all.len(), 60);
        // Free, too.
        for port in all {
            TcpListener::bind(("127.0.0.1", port)).unwrap();
        }
    }

    #[test]
    fn none_and_too_many_are_refused() {
        assert!(ports(0).is_err() && ports(BLOCK).is_err());
    }
}
