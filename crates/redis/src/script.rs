//! The Lua scripts, one per operation of a node, and how to call one.

use std::sync::LazyLock;

use redis::{
    Cmd, ErrorKind, FromRedisValue, RedisResult, Script, ServerErrorKind, ToRedisArgs,
    aio::{ConnectionLike, MultiplexedConnection},
};

use super::keys::Key;

macro_rules! scripts {
    ($($name:ident: $($file:literal)+;)+) => {
        /// One script per operation; the header of each file describes its arguments and result.
        pub(super) struct Scripts { $(pub(super) $name: Script,)+ }

        /// The scripts, hashed once.
        pub(super) static SCRIPTS: LazyLock<Scripts> = LazyLock::new(|| Scripts {
            $($name: Script::new(concat!($(include_str!(concat!("lua/", $file, ".lua"))),+)),)+
        });

        impl Scripts {
            /// Loads every script into the server, so that no request has to.
            pub(super) async fn preload(
                &self,
                connection: &mut impl ConnectionLike,
            ) -> RedisResult<()> {
                $(self.$name.load_async(connection).await?;)+
                Ok(())
            }
        }
    };
}

scripts! {
    grant: "lease" "held" "incarnation" "chain" "hint" "grant" "tidy";
    extend: "renew" "extend" "incarnation" "vacancy" "absent";
    extend_many: "incarnation" "vacancy" "renew" "extend_many";
    repair: "incarnation" "chain" "hint" "heal";
    resign: "incarnation" "chain" "hint" "resign" "vacancy" "absent";
    roll_back: "incarnation" "chain" "hint" "withdraw";
    read: "lease" "read" "incarnation" "vacancy" "absent";
    read_many: "lease" "incarnation" "vacancy" "read_many";
    list: "lease" "list";
    kinds: "kinds";
    index: "incarnation" "index" "tidy";
    mark: "incarnation" "mark";
    probe: "incarnation" "probe";
    register: "incarnation" "register";
}

/// A script with its keys and arguments, in its header's order.
pub(super) struct Call {
    script: &'static Script,
    command: Cmd,
}

/// The capacity of a call before it has to grow: more than a usual grant.
const ARGUMENTS: usize = 20;
const BYTES: usize = 384;

impl Call {
    pub(super) fn new<'a>(
        script: &'static Script,
        keys: impl IntoIterator<Item = Key<'a>, IntoIter: ExactSizeIterator>,
    ) -> Self {
        let keys = keys.into_iter();
        let mut command = Cmd::with_capacity(ARGUMENTS, BYTES);
        command
            .arg("EVALSHA")
            .arg(script.get_hash())
            .arg(keys.len());
        for key in keys {
            command.arg(key);
        }
        Self { script, command }
    }

    pub(super) fn arg(mut self, argument: impl ToRedisArgs) -> Self {
        self.command.arg(argument);
        self
    }

    /// Runs the script; loads it first into a server that does not know it.
    pub(super) async fn run<T: FromRedisValue>(
        &self,
        connection: &mut MultiplexedConnection,
    ) -> RedisResult<T> {
        let mut reply = self.send(connection).await;
        if let Err(error) = &reply
            && error.kind() == ErrorKind::Server(ServerErrorKind::NoScript)
        {
            self.script.load_async(connection).await?;
            reply = self.send(connection).await;
        }
        Ok(redis::from_redis_value(reply?)?)
    }

    async fn send(&self, connection: &mut MultiplexedConnection) -> RedisResult<redis::Value> {
        let sent = connection.send_packed_command(&self.command);
        sent.await?.extract_error()
    }

    /// Runs the script on the server that is importing the keys' slot. ASKING applies to the very next command of the
    /// connection only, and others use the connection as well: both commands go out as one pipeline. One more argument
    /// informs the script that keys may still be on the other server.
    pub(super) async fn run_asking<T: FromRedisValue>(
        &self,
        connection: &mut impl ConnectionLike,
    ) -> RedisResult<T> {
        let mut both = redis::pipe();
        let mut command = self.command.clone();
        command.arg("asking");
        both.cmd("ASKING").ignore().add_command(command);
        match both.query_async(connection).await {
            Ok((reply,)) => Ok(reply),
            // As if the script had been sent alone.
            Err(error) => Err(match error.clone().into_server_errors().as_deref() {
                Some([(_, error), ..]) => error.clone().into(),
                _ => error,
            }),
        }
    }
}
