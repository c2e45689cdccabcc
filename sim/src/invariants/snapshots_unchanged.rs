//! A snapshot is for ever what it was (P2, rule 8), whatever was written, merged, rebuilt or deleted around it.

use crate::actors::operator;
use crate::world::World;
use std::rc::Rc;

pub async fn check(world: &Rc<World>) -> Vec<String> {
    let mut wrong = Vec::new();
    let all = world.taken.borrow().clone();
    for t in all {
        match operator::read(world, t.layer, 5).await {
            None => wrong.push(format!("snapshot {} cannot be read any more", t.id)),
            Some(now) => {
                for (register, value) in &t.contents {
                    let found = now.get(register);
                    if found != Some(value) {
                        wrong.push(format!(
                            "snapshot {}: register {register} was {value}, is {found:?}",
                            t.id
                        ));
                    }
                }
            }
        }
    }
    wrong
}
