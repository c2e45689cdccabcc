//! Who orders the writes of a VDI, and where it is open.

use super::Outcome;
use crate::{ClusterState, CommandError, GatewayOpen, Reply, Session, Vdi};
use sheepdog_proto::{ControlIndex, Generation, NodeId, VdiId};

impl ClusterState {
    pub(super) fn vdi_mut(&mut self, id: VdiId) -> Result<&mut Vdi, CommandError> {
        self.vdis
            .get_mut(&id)
            .ok_or_else(|| CommandError::NotFound(format!("there is no VDI with id {}", id.hex())))
    }

    /// One that users see: not in the trash.
    pub(super) fn listed_mut(&mut self, id: VdiId) -> Result<&mut Vdi, CommandError> {
        let v = self.vdi_mut(id)?;
        if v.is_listed() { Ok(v) } else { Err(v.is_in_trash()) }
    }

    /// The caller speaks for the session if there is one.
    pub(super) fn check_generation(
        &self,
        id: VdiId,
        generation: Option<Generation>,
    ) -> Result<(), CommandError> {
        let v = self
            .vdis
            .get(&id)
            .ok_or_else(|| CommandError::NotFound(format!("there is no VDI with id {}", id.hex())))?;
        match (&v.session, generation) {
            (Session::Closed | Session::Unclean { .. }, None) => Ok(()),
            (Session::Open { generation: g, ready: true, .. }, Some(mine)) if *g == mine => Ok(()),
            (Session::Open { owner, .. }, None) => {
                Err(CommandError::Busy(format!("VDI {} is in use on node {}", v.name, owner.short())))
            }
            _ => Err(CommandError::Fenced),
        }
    }

    pub(super) fn session_open(&mut self, vdi: VdiId, node: NodeId, incarnation: u64) -> Outcome {
        if !self.nodes.get(&node).is_some_and(|n| n.is_up() && n.incarnation == incarnation) {
            return Err(CommandError::Fenced);
        }
        let next = self.last_generation + 1;
        let v = self.vdi_mut(vdi)?;
        v.check_working()?;
        let reconcile = match v.session {
            Session::Open { owner, generation, .. } if owner != node => {
                return Ok(Reply::Owned { owner, generation });
            }
            // The same process asks again: whatever it began is lost, so copies may differ.
            Session::Open { .. } | Session::Unclean { .. } => true,
            Session::Closed => false,
        };
        let generation = Generation(next);
        v.session = Session::Open { owner: node, incarnation, generation, ready: false };
        v.generation = generation;
        self.last_generation = next;
        Ok(Reply::Session { generation, reconcile })
    }

    pub(super) fn gateway_open(&mut self, vdi: VdiId, node: NodeId, incarnation: u64) -> Outcome {
        if !self.nodes.get(&node).is_some_and(|n| n.is_up() && n.incarnation == incarnation) {
            return Err(CommandError::Fenced);
        }
        let since = self.index;
        let v = self.vdi_mut(vdi)?;
        v.check_working()?;
        let fresh = GatewayOpen { incarnation, since };
        let now = v.gateways.entry(node).and_modify(|g| {
            if g.incarnation != incarnation {
                *g = fresh;
            }
        });
        Ok(Reply::Registered(now.or_insert(fresh).since))
    }

    pub(super) fn gateway_close(
        &mut self,
        vdi: VdiId,
        node: NodeId,
        since: ControlIndex,
        fence: bool,
    ) -> Outcome {
        let up = self.nodes.get(&node).filter(|n| n.is_up()).map(|n| n.incarnation);
        let v = self.vdi_mut(vdi)?;
        let Some(open) = v.gateways.get(&node).filter(|g| g.since == since) else { return Ok(Reply::Done) };
        if fence && up == Some(open.incarnation) {
            return Err(CommandError::Busy(format!("node {} is up: ask it", node.short())));
        }
        v.gateways.remove(&node);
        Ok(Reply::Done)
    }

    pub(super) fn session_ready(&mut self, vdi: VdiId, mine: Generation) -> Outcome {
        match &mut self.vdi_mut(vdi)?.session {
            Session::Open { generation, ready, .. } if *generation == mine => {
                *ready = true;
                Ok(Reply::Done)
            }
            _ => Err(CommandError::Fenced),
        }
    }

    pub(super) fn session_close(&mut self, vdi: VdiId, mine: Generation) -> Outcome {
        let v = self.vdi_mut(vdi)?;
        match v.session {
            Session::Open { generation, ready: true, .. } if generation == mine => {
                v.session = Session::Closed;
                Ok(Reply::Done)
            }
            Session::Closed if v.generation == mine => Ok(Reply::Done),
            _ => Err(CommandError::Fenced),
        }
    }
}
