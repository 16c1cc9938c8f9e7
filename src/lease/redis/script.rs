//! The Lua scripts, one per operation of a node, and how one is called.

use std::sync::LazyLock;

use redis::{
    Cmd, ErrorKind, FromRedisValue, RedisResult, Script, ServerErrorKind, aio::ConnectionLike,
};

macro_rules! scripts {
    ($($name:ident: $($file:literal)+;)+) => {
        /// One script per operation; the header of each file says what it takes and gives.
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
    grant: "common" "grant";
    extend: "extend";
    heal: "common" "heal";
    resign: "resign";
    withdraw: "common" "withdraw";
    read: "common" "read";
    list: "common" "list";
    mark: "common" "mark";
    probe: "common" "probe";
    register: "common" "register";
}

/// A script with its keys and arguments, in its header's order.
pub(super) struct Call<'a> {
    script: &'a Script,
    command: Cmd,
}

impl<'a> Call<'a> {
    pub(super) fn new(
        script: &'a Script,
        keys: &[&str],
        arguments: &[&(dyn AsRef<[u8]> + Sync)],
    ) -> Self {
        let mut command = redis::cmd("EVALSHA");
        command.arg(script.get_hash()).arg(keys.len()).arg(keys);
        for argument in arguments {
            command.arg(argument.as_ref());
        }
        Self { script, command }
    }

    /// Runs the script; a server that does not know it is given it.
    pub(super) async fn run<T: FromRedisValue>(
        &self,
        connection: &mut impl ConnectionLike,
    ) -> RedisResult<T> {
        match self.command.query_async(connection).await {
            Err(error) if error.kind() == ErrorKind::Server(ServerErrorKind::NoScript) => {
                self.script.load_async(connection).await?;
                self.command.query_async(connection).await
            }
            result => result,
        }
    }

    /// Runs the script on the server that is about to take the keys' slot over. The permission to do so is
    /// for the very next command of the connection, which others use as well: both go out as one.
    pub(super) async fn run_asking<T: FromRedisValue>(
        &self,
        connection: &mut impl ConnectionLike,
    ) -> RedisResult<T> {
        let mut both = redis::pipe();
        both.cmd("ASKING")
            .ignore()
            .add_command(self.command.clone());
        match both.query_async(connection).await {
            Ok((reply,)) => Ok(reply),
            // As if it had been sent alone.
            Err(error) => Err(match error.clone().into_server_errors().as_deref() {
                Some([(_, error), ..]) => error.clone().into(),
                _ => error,
            }),
        }
    }
}
