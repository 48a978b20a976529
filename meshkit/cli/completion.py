"""`meshkit completion`: tab completion for the user's shell."""

import click
from click.shell_completion import get_completion_class


@click.command()
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
@click.pass_context
def completion(ctx: click.Context, shell: str) -> None:
    """Print the completion script of a shell.

    Where it goes:

    \b
      bash   meshkit completion bash > ~/.local/share/bash-completion/completions/meshkit
      zsh    meshkit completion zsh > ~/.zfunc/_meshkit
             (~/.zshrc needs `fpath+=~/.zfunc` before `compinit`)
      fish   meshkit completion fish > ~/.config/fish/completions/meshkit.fish
    """  # noqa: D301 - the backspace character keeps click from wrapping the lines
    script = get_completion_class(shell)
    assert script is not None
    root = ctx.find_root()
    click.echo(script(root.command, {}, "meshkit", "_MESHKIT_COMPLETE").source())
