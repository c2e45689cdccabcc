//! `kubectl sheepdog dog ARGS...`

use crate::choose;
use crate::connect::Connected;
use crate::exec::Place;
use crate::failure::Failure;
use crate::words::{name, namespace};

/// Run dog in a pod of a sheep: its input, its output and its exit code are dog's
///
/// The same as `kubectl exec -i -n NAMESPACE ds/CLUSTER-sheep -- dog ...`, but with a sheep that is ready, and without names where there is one cluster. Options before the
/// first word of dog are this command's, everything after it is dog's. Files are read and written in the pod: pass data through standard input and output. In a shell's loop
/// give it `</dev/null`, since it reads its input.
#[derive(clap::Args, Debug)]
pub struct Args {
    /// Name of the SheepdogCluster (default: the only one)
    #[arg(long, value_name = "NAME")]
    pub cluster: Option<String>,
    /// What dog is to do, for example: vdi list
    #[arg(required = true, trailing_var_arg = true, allow_hyphen_values = true, value_name = "ARGS")]
    pub dog: Vec<String>,
}

/// Choose a sheep, run it there.
pub async fn run(c: &Connected, args: Args) -> Result<u8, Failure> {
    let cluster = choose::one(c, args.cluster.as_deref()).await?;
    let pod = choose::sheep(c, &cluster).await?;
    let place = Place { connected: c, namespace: &namespace(&cluster), pod: &name(&pod) };
    let command: Vec<String> = std::iter::once("dog".to_owned()).chain(args.dog).collect();
    place.foreground(&command).await
}
